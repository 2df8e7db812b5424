"""The errors that a user can cause. Commands print them as one line and exit with code 1."""

__all__ = ["D2CityscapesError", "MissingDetectron2Error"]


class D2CityscapesError(Exception):
    """Base of every error of this package: one line that says what, where and what to do."""


class MissingDetectron2Error(D2CityscapesError, ImportError):
    """A glue component was asked for on a machine without Detectron2."""

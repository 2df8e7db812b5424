"""The errors that a user can cause. Commands print them as one line and exit with code 1."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["D2CityscapesError", "MissingDetectron2Error"]


class D2CityscapesError(Exception):
    """Base of every error of this package: one line that says what, where and what to do.

    Attributes:
        details: more lines, where one problem was found many times; commands print them above the
            line.
    """

    def __init__(self, *args: object, details: Sequence[str] = ()) -> None:
        super().__init__(*args)
        self.details = tuple(details)


class MissingDetectron2Error(D2CityscapesError, ImportError):
    """A glue component was asked for on a machine without Detectron2."""

"""What goes wrong here, for the user to read."""

from __future__ import annotations

__all__ = ["InstallError"]


class InstallError(Exception):
    """A reason, in one line, why Detectron2 could not be installed."""

"""Detectron2, which the glue rooms need, and extras: the one place that says what is missing."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from d2_cityscapes.errors import D2CityscapesError, MissingDetectron2Error

__all__ = [
    "MISSING_DETECTRON2",
    "has_detectron2",
    "import_extra",
    "lazy_exports",
    "require_detectron2",
]

MISSING_DETECTRON2 = (
    "d2_cityscapes needs Detectron2, which is not installed and is not on PyPI: run "
    "`d2c install-detectron2`"
)


def has_detectron2() -> bool:
    """Whether a Detectron2 can be found, without importing it."""
    return importlib.util.find_spec("detectron2") is not None


def require_detectron2() -> None:
    """Raise `MissingDetectron2Error`, with the command to run, where Detectron2 is missing."""
    if not has_detectron2():
        raise MissingDetectron2Error(MISSING_DETECTRON2)


def import_extra(module: str, needed_by: str, *, extra: str | None = None) -> Any:
    """A module of an extra of setup.py, imported where it is used.

    Args:
        module: e.g. "timm".
        needed_by: the config key and value, or whatever else the user has asked for.
        extra: the extra, where it has another name than the module.

    Raises:
        D2CityscapesError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise D2CityscapesError(
            f"{needed_by} needs {module} ({error}): pip install "
            f"'d2_cityscapes[{extra or module}]', or {module} by itself"
        ) from error


def lazy_exports(
    package: str, exports: Mapping[str, str], *, detectron2: bool = True
) -> Callable[[str], Any]:
    """Build the module-level ``__getattr__`` (PEP 562) of a package: names imported when asked for.

    So the plain rooms of a package stay importable without Detectron2, and what is quick stays so.

    Args:
        package: ``__name__`` of the package that exports the names.
        exports: public name -> module that defines it.
        detectron2: whether they need it. One that is missing is reported with
            `MissingDetectron2Error`.
    """

    def __getattr__(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if detectron2:
            require_detectron2()
        return getattr(importlib.import_module(exports[name]), name)

    return __getattr__

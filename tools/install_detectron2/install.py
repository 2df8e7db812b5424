"""The wheel, installed with pip."""

from __future__ import annotations

from pathlib import Path

from .pip_process import run_pip

__all__ = ["install"]


def install(wheel: Path, constraint: Path | None, *, force: bool) -> None:
    """Install the wheel and what it needs with pip, which leaves everything as it was on failure.

    With `force` the wheel goes in once more on its own, since pip takes an installed Detectron2 of
    the same version for this one; the dependencies are not reinstalled.
    """
    arguments = [] if constraint is None else ["--constraint", str(constraint)]
    passes: list[list[str]] = [[]] + ([["--force-reinstall", "--no-deps"]] if force else [])
    for extra in passes:
        run_pip("install", [*arguments, *extra, str(wheel)], doing="cannot install detectron2")

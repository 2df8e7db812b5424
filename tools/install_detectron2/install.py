"""The wheel, installed with pip."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from .pip_process import run_pip

__all__ = ["install"]

_HELD = ("torch", "torchvision", "numpy")


def install(wheel: Path, constraint: Path | None, *, force: bool) -> None:
    """Install the wheel and what it needs with pip, which leaves everything as it was on failure.

    PyTorch and numpy stay as they are in any case: other packages were built for them.

    With `force` the wheel goes in once more on its own, since pip takes an installed Detectron2 of
    the same version for this one; the dependencies are not reinstalled.
    """
    passes: list[list[str]] = [[]] + ([["--force-reinstall", "--no-deps"]] if force else [])
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "held.txt"
        held.write_text("".join(f"{line}\n" for line in _installed(_HELD)))
        files = [held] if constraint is None else [held, constraint]
        arguments = [word for file in files for word in ("--constraint", str(file))]
        for extra in passes:
            run_pip("install", [*arguments, *extra, str(wheel)], doing="cannot install detectron2")


def _installed(names: Sequence[str]) -> Iterator[str]:
    """ "torch==2.14.1+cu130", ..., of those that are installed: of two copies the one in use."""
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"{name}=={metadata.version(name)}"

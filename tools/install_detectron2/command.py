"""Install Detectron2, which is not on PyPI under its own name.

A Detectron2 0.6 or newer that the running Python can already import, for example one built from
the official main branch, is left alone. Otherwise this downloads the source archive
`pb1-detectron2==0.6` from the package index (its Python files are those of the official v0.6 tag;
the C++ sources are missing), checks its SHA-256, applies the compatibility edits listed in
edits.py, and installs the result as a pure-Python wheel named `detectron2`. What needs Detectron2's
compiled extension (rotated boxes, deformable convolution) then says so when it is used;
everything else works. torch and torchvision must be installed first; they and numpy stay as they
are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .download import download_sdist
from .edits import EDITS, SDIST_NAME, SDIST_VERSION
from .errors import InstallError
from .install import install
from .probe import find_detectron2, has_module
from .source import add_files, apply_edits, unpack
from .wheel import build_wheel

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        print(_run(_parse(arguments)))
    except (InstallError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a Detectron2 that is importable already"
    )
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="keep the wheel in DIR")
    parser.add_argument(
        "--no-install", action="store_true", help="only build the wheel; needs --wheel-dir"
    )
    parser.add_argument(
        "--constraint",
        type=Path,
        metavar="FILE",
        help="constraints file for pip; PyTorch and numpy stay as they are without one, too",
    )
    options = parser.parse_args(arguments)
    if options.no_install and options.wheel_dir is None:
        parser.error("--no-install needs --wheel-dir")
    return options


def _run(options: argparse.Namespace) -> str:
    """Do what the options ask; returns the line to print."""
    if not options.no_install and not options.force:
        found = find_detectron2()
        if found is not None and found.new_enough:
            if found.problem:
                raise InstallError(
                    f"detectron2 {found.version} in {found.folder} is installed but broken "
                    f"({found.problem}); --force replaces it"
                )
            return f"detectron2 {found.version} in {found.folder} is left alone"
    if options.constraint is not None and not options.constraint.is_file():
        raise InstallError(f"{options.constraint}: there is no such constraints file")
    for module in ("torch", "torchvision"):
        if not has_module(module):
            raise InstallError(
                f"{module} must be installed before detectron2: run "
                f"`{sys.executable} -m pip install torch torchvision`"
            )
    with tempfile.TemporaryDirectory(prefix="install_detectron2_") as temporary:
        work = Path(temporary)
        for folder in ("download", "source", "wheel"):
            (work / folder).mkdir()
        print(f"downloading {SDIST_NAME}=={SDIST_VERSION}")
        root = unpack(download_sdist(work / "download"), work / "source")
        edited = apply_edits(root)
        add_files(root)
        print(f"applied {len(EDITS)} compatibility edits to {len(edited)} files")
        wheel = build_wheel(root, options.wheel_dir or work / "wheel")
        if options.no_install:
            return f"built {wheel}"
        print(f"installing {wheel.name} and what it needs")
        install(wheel, options.constraint, force=options.force)
    found = find_detectron2()
    if found is None or found.problem:
        reason = found.problem if found else "it cannot be imported"
        raise InstallError(f"detectron2 was installed but does not work: {reason}")
    return f"installed detectron2 {found.version} in {found.folder}"

"""Run the installer of Detectron2, which stands apart as it needs nothing that is installed."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from d2_cityscapes.shipped import shipped

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process; it leaves the process."""
    if argv is not None:
        sys.argv[1:] = argv
    runpy.run_path(str(shipped("tools/install_detectron2")), run_name="__main__")

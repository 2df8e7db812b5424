"""Write one self-contained HTML page about a training: results, loss curves and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from d2_cityscapes.commands.cli import HelpFormatter

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
        epilog="example: d2c report output/stages --output stages.html",
    )
    parser.add_argument("run_dir", help="output folder of d2c train or of d2c stages")
    parser.add_argument("--output", metavar="FILE", help="the page; RUN_DIR/report.html by default")
    args = parser.parse_args(argv)

    from d2_cityscapes.report.run import write_report

    print(write_report(args.run_dir, args.output))
    return 0

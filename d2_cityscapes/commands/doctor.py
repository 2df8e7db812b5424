"""Look for what keeps a training from working here, and say what to do about it.

Prints versions beside those that were tested, which Detectron2 this is, the GPU, free memory, disk
and shared memory, the datasets below DETECTRON2_DATASETS with their numbers of images, how fast a
shard reads, and whether a tiny network computes the same on CPU and GPU. A line with ! has a
remedy below it; the exit code is 1 then. With --json, the same for a bug report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_cityscapes.commands import gpu_check
from d2_cityscapes.commands.cli import HelpFormatter

__all__ = ["main"]

_GPU = "--gpu"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("output"), metavar="DIR", help="where runs will go"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument(
        _GPU,
        action="store_true",
        help="ten minutes of checks on the GPU instead; --gpu --help says more",
    )
    arguments = list(sys.argv[1:] if argv is None else argv)
    if _GPU in arguments:
        arguments.remove(_GPU)
        return gpu_check.main(arguments)
    args = parser.parse_args(arguments)

    from d2_cityscapes.doctor.examination import examine
    from d2_cityscapes.doctor.findings import as_json, as_text, problems

    findings = examine(args.output)
    found = len(problems(findings))
    if args.json:
        print(json.dumps(as_json(findings), indent=1))
    else:
        print(as_text(findings), end="\n\n")
        print("nothing to do" if not found else f"{found} problem{'s' * (found > 1)}, see the !")
    return 1 if found else 0

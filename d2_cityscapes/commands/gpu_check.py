"""What this package does on your GPU, in ten minutes at most: run it first on every new machine.

  numbers    losses and gradients of every model, beside the CPU's: float32, float16, bfloat16, and
             every option of speed
  speed      training steps at 1024 x 2048, batch 4, beside stock Detectron2's, in turn: images a
             second, memory, time spent waiting for data, share of the time that the GPU is busy
  waits      for what the host waits in a step, by line of code; kernels; memory
  inference  prediction and evaluation, images a second
  gate       short trainings that have to learn, and the CPU's scores of what they learned

It makes its own scenes and needs no data set and no network. Each part writes what it has found
into the output folder as it goes, and the same command goes on where the last one ended. At the end
it writes gpu_check.json, and gpu_check.md, a section for docs/benchmarks.md.

Exit code 1 if a comparison of numbers, or a gate, has failed; figures of speed never do.
From a checkout where the package is not installed: PYTHONPATH=. python tools/gpu_check.py
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_cityscapes.commands.cli import HelpFormatter, not_negative, positive

__all__ = ["main"]

PARTS = ("numbers", "speed", "waits", "inference", "gate")
WAYS = ("json-polygons", "png-polygons", "png-rle")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("gpu_check"),
        metavar="DIR",
        help="for all that it writes",
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:1 of several")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"of {', '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=positive, default=600, metavar="SECONDS", help="nothing begins after it"
    )
    parser.add_argument(
        "--workers", type=not_negative, default=8, help="loader processes of each trainer"
    )
    parser.add_argument(
        "--stock", choices=WAYS, default=None,
        help="how stock Detectron2 reads the scenes; the leanest of which the packages are there",
    )  # fmt: skip
    parser.add_argument(
        "--tiny", action="store_true", help="a try of the check itself, on the CPU too"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    from d2_cityscapes import register_components

    register_components()
    from d2_cityscapes.benchmark.gpu.check import MARKDOWN, run_check
    from d2_cityscapes.benchmark.gpu.settings import GpuCheck
    from d2_cityscapes.benchmark.stock_tree import best_stock

    check = GpuCheck(
        output=args.output,
        device=args.device,
        tiny=args.tiny,
        budget=float(args.budget),
        workers=args.workers,
        stock=args.stock or best_stock(),
    )
    good = run_check(
        check,
        parts=args.parts,
        command=shlex.join(["python", *sys.argv]),
        say=lambda line: print(line, flush=True),
    )
    print(f"wrote {args.output / MARKDOWN}, and JSON beside it")
    if not good:
        print("error: numbers differ, or a gate has failed: see FAIL above", file=sys.stderr)
    return 0 if good else 1

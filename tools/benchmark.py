#!/usr/bin/env python
"""Measure this package beside stock Detectron2, in one run on this machine.

  data    listing, mapper, record read, first batch, throughput and memory: shards against
          Detectron2's own loading of the same PNG tree. Without --cityscapes, synthetic scenes are
          made and packed in --work-dir first; they and the shards are kept for the next run.

Ratios above 1 are in favour of this package. Writes JSON, and Markdown beside it.
"""

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from d2_cityscapes.cli import HelpFormatter, run

SIZE = {"height": 1024, "width": 2048}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    data = modes.add_parser("data", help="loading", formatter_class=HelpFormatter)
    data.add_argument("--cityscapes", type=Path, help="root of a PNG tree; omit for synthetic")
    data.add_argument("--split", default="train", choices=["train", "val"], help="what to load")
    data.add_argument(
        "--stock",
        nargs="+",
        default=["png-polygons", "png-rle", "json-polygons"],
        choices=["png-polygons", "png-rle", "json-polygons"],
        help="how Detectron2 reads the tree; polygons need OpenCV, JSON needs shapely",
    )
    data.add_argument("--images", type=int, default=96, help="synthetic scenes, 1024 x 2048")
    data.add_argument(
        "--work-dir", type=Path, default=Path("benchmark_data"), help="for scenes and shards"
    )
    data.add_argument("--workers", type=int, default=2, help="loader processes, both sides")
    data.add_argument("--rounds", type=int, default=3, help="runs of each side, in turn")
    data.add_argument("--batches", type=int, default=24, help="batches of 4 for the throughput")
    data.add_argument("--output", type=Path, default=Path("benchmark_data.json"), help="results")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from d2_cityscapes.dependencies import require_detectron2

    require_detectron2()
    from d2_cityscapes.benchmark.comparison import as_markdown, write_comparisons
    from d2_cityscapes.benchmark.data import DataBenchmark, benchmark_data
    from d2_cityscapes.data.cityscapes import find_sources
    from d2_cityscapes.data.shard_writer import write_shards
    from d2_cityscapes.data.synthetic import make_tree

    tree = args.cityscapes or args.work_dir / "cityscapes"
    if args.cityscapes is None:
        counts = {"train": 0, "val": 0} | {args.split: args.images}
        make_tree(tree, **counts, **SIZE, seed=1, progress=True)
    shards = args.work_dir / "shards"
    write_shards(find_sources(tree, args.split), shards, split=args.split, progress=True)
    settings = DataBenchmark(
        cityscapes=tree,
        shards=shards,
        stock=args.stock,
        split=args.split,
        workers=args.workers,
        rounds=args.rounds,
        batches=args.batches,
    )
    comparisons = benchmark_data(
        settings, report=lambda found: print(as_markdown(found), flush=True)
    )
    write_comparisons(
        args.output,
        comparisons,
        command=shlex.join(sys.argv),
        settings={name: str(value) for name, value in asdict(settings).items()},
    )
    print(f"wrote {args.output} and {args.output.with_suffix('.md')}")


if __name__ == "__main__":
    run(main)

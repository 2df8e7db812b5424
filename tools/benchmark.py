#!/usr/bin/env python
"""Measure this package beside stock Detectron2 and the official tools, in one run on this machine.

  data         listing, mapper, record read, first batch, throughput and memory: shards against
               Detectron2's own loading of the same PNG tree
  evaluation   panoptic quality against cityscapesscripts, instance AP against Detectron2's
               evaluators: the same noisy predictions, one thread

Without --cityscapes, synthetic scenes are made in --work-dir first, and kept for the next run, as
the shards are. Ratios above 1 are in favour of this package. Writes JSON, and Markdown beside it.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from d2_cityscapes.cli import HelpFormatter, run

if TYPE_CHECKING:
    from d2_cityscapes.benchmark.comparison import Comparison

SIZE = {"height": 1024, "width": 2048}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    data = modes.add_parser("data", help="loading", formatter_class=HelpFormatter)
    evaluation = modes.add_parser("evaluation", help="scoring", formatter_class=HelpFormatter)
    for mode, split, images, rounds in ((data, "train", 96, 3), (evaluation, "val", 16, 5)):
        mode.add_argument("--cityscapes", type=Path, help="root of a PNG tree; omit for synthetic")
        mode.add_argument("--split", default=split, choices=["train", "val"], help="of the tree")
        mode.add_argument(
            "--images", type=int, default=images, help="synthetic scenes, 1024 x 2048, to make"
        )
        mode.add_argument(
            "--work-dir", type=Path, default=Path("benchmark_data"), help="for scenes and shards"
        )
        mode.add_argument("--rounds", type=int, default=rounds, help="runs of each side, in turn")
        mode.add_argument("--output", type=Path, help="results; default benchmark_MODE.json")
    data.add_argument(
        "--stock",
        nargs="+",
        default=["png-polygons", "png-rle", "json-polygons"],
        choices=["png-polygons", "png-rle", "json-polygons"],
        help="how Detectron2 reads the tree; polygons need OpenCV, JSON needs shapely",
    )
    data.add_argument("--workers", type=int, default=2, help="loader processes, both sides")
    data.add_argument("--batches", type=int, default=24, help="batches of 4 for the throughput")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from d2_cityscapes.dependencies import require_detectron2

    require_detectron2()
    from d2_cityscapes.benchmark.comparison import as_markdown, write_comparisons
    from d2_cityscapes.data.synthetic import make_tree

    output = args.output or Path(f"benchmark_{args.mode}.json")
    tree = args.cityscapes or args.work_dir / f"cityscapes_{args.split}"
    if args.cityscapes is None:
        counts = {"train": 0, "val": 0} | {args.split: args.images}
        make_tree(tree, **counts, **SIZE, seed=1, progress=True)

    def report(found: "Sequence[Comparison]") -> None:
        print(as_markdown(found), flush=True)

    measure = {"data": measure_data, "evaluation": measure_evaluation}[args.mode]
    settings, comparisons = measure(args, tree, report)
    write_comparisons(
        output,
        comparisons,
        command=shlex.join(sys.argv),
        settings={name: str(value) for name, value in asdict(settings).items()},
    )
    print(f"wrote {output} and {output.with_suffix('.md')}")


def measure_data(args: argparse.Namespace, tree: Path, report):
    from d2_cityscapes.benchmark.data import DataBenchmark, benchmark_data
    from d2_cityscapes.data.cityscapes import find_sources
    from d2_cityscapes.data.shard_writer import write_shards

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
    return settings, benchmark_data(settings, report=report)


def measure_evaluation(args: argparse.Namespace, tree: Path, report):
    from d2_cityscapes.benchmark.evaluation import EvaluationBenchmark, benchmark_evaluation

    settings = EvaluationBenchmark(
        cityscapes=tree,
        tools=Path(__file__).parent,
        split=args.split,
        images=args.images,
        rounds=args.rounds,
    )
    return settings, benchmark_evaluation(settings, report=report)


if __name__ == "__main__":
    run(main)

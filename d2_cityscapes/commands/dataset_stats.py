"""Size, class and shape distribution of the objects of a split, or of some of its partitions.

Reads the tables of the shards and no pixel; needs no Detectron2. Group regions are counted apart.
Box width and height are half-open, so figures made from inclusive boxes are one pixel less; the
ratio shown is width / height (anchors use its inverse).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from d2_cityscapes.commands.cli import HelpFormatter
from d2_cityscapes.files import expanded

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--shards",
        type=Path,
        default=Path(expanded(os.getenv("DETECTRON2_DATASETS", "datasets"))) / "cityscapes_shards",
        metavar="DIR",
        help="the shard folder, found through $DETECTRON2_DATASETS",
    )
    parser.add_argument("--split", required=True, help="train, val, train_extra or test")
    parser.add_argument(
        "--labels",
        metavar="TABLE",
        help="the classes: cityscapes, idd, vistas, or a YAML file; without it, those that the "
        "shards were made with",
    )
    parser.add_argument(
        "--partitions",
        type=int,
        nargs="+",
        metavar="K",
        help="numbers from 1, counted as one set; all where not given",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write statistics.json and statistics.png there"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    from d2_cityscapes.data import ShardReader
    from d2_cityscapes.files import check_outputs, write_atomically
    from d2_cityscapes.labels.table_file import find_table
    from d2_cityscapes.shards.reader import folder_table
    from d2_cityscapes.shards.statistics import dataset_statistics, plot_statistics
    from d2_cityscapes.shards.statistics_text import format_statistics

    names = ("statistics.json", "statistics.png") if args.output else ()
    outputs = [args.output / name for name in names]
    check_outputs(outputs)
    partitions = sorted(set(args.partitions)) if args.partitions else None
    table = find_table(args.labels) if args.labels else folder_table(args.shards)
    reader = ShardReader(args.shards, split=args.split, partitions=partitions, table=table)
    tables = (reader.table(index) for index in range(len(reader)))
    statistics = dataset_statistics(tables, table)
    title = args.split
    if partitions:
        title += f", partitions {' '.join(map(str, partitions))}"
    print(f"{title} of {args.shards}\n")
    print(format_statistics(statistics))
    if outputs:
        as_json, plot = outputs
        source = {"shards": str(args.shards), "split": args.split, "partitions": partitions}
        content = json.dumps({"source": source, **statistics.to_dict()}, indent=2)
        write_atomically(as_json, [content.encode(), b"\n"])
        plot_statistics(plot, statistics, title)
        print(f"\nwrote {as_json} and {plot}")

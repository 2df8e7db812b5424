#!/usr/bin/env python
"""Size, class and shape distribution of the objects of a split, or of some of its partitions.

Reads the tables of the shards and no pixel; needs no Detectron2. Group regions are counted apart.
Box width and height are half-open, so figures made from inclusive boxes are one pixel less; the
ratio shown is width / height (anchors use its inverse).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d2_cityscapes.commands.cli import HelpFormatter
from d2_cityscapes.errors import run

if TYPE_CHECKING:
    from d2_cityscapes.shards.statistics import DatasetStatistics, Distribution, Share

LONGEST_BAR = 40  # characters


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--shards",
        type=Path,
        default=Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / "cityscapes_shards",
        metavar="DIR",
        help="the shard folder, found through $DETECTRON2_DATASETS",
    )
    parser.add_argument("--split", required=True, help="train, val or train_extra")
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
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from d2_cityscapes.data import ShardReader
    from d2_cityscapes.files import write_atomically
    from d2_cityscapes.labels import CITYSCAPES
    from d2_cityscapes.shards.statistics import dataset_statistics, plot_statistics

    partitions = sorted(set(args.partitions)) if args.partitions else None
    reader = ShardReader(args.shards, split=args.split, partitions=partitions)
    tables = (reader.table(index) for index in range(len(reader)))
    statistics = dataset_statistics(tables, CITYSCAPES)
    title = args.split
    if partitions:
        title += f", partitions {' '.join(map(str, partitions))}"
    print(f"{title} of {args.shards}\n")
    print(format_statistics(statistics))
    if args.output:
        source = {"shards": str(args.shards), "split": args.split, "partitions": partitions}
        content = json.dumps({"source": source, **statistics.to_dict()}, indent=2)
        write_atomically(args.output / "statistics.json", [content.encode(), b"\n"])
        plot_statistics(args.output / "statistics.png", statistics, title)
        print(f"\nwrote {args.output / 'statistics.json'} and {args.output / 'statistics.png'}")


def format_statistics(s: DatasetStatistics) -> str:
    """Tables, then histograms."""
    from d2_cityscapes.shards.statistics import SIZE_RULES

    distributions = {
        "objects per image": s.objects_per_image,
        "box width [px]": s.width,
        "box height [px]": s.height,
        "box width / height": s.width_over_height,
    }
    blocks = [
        table(
            ["images", s.images],
            ["images without objects", s.images_without_objects],
            ["objects", s.objects],
            ["group regions (no objects)", s.groups],
        ),
        table(
            ["class", "objects", "%", "images with it", "group regions"],
            *([name, *cells(c), c.images, c.groups] for name, c in s.classes.items()),
        ),
        table(
            ["size [px^2]", "by box area", "%", "by mask area", "%"],
            *(
                [f"{size:<7} {rule}", *cells(s.sizes["box"][size]), *cells(s.sizes["mask"][size])]
                for size, rule in SIZE_RULES.items()
            ),
        ),
        table(
            ["", "mean", "median", "min", "max"],
            *([name, d.mean, d.median, d.min, d.max] for name, d in distributions.items()),
        ),
        *(histogram(name, d) for name, d in distributions.items() if d.counts),
    ]
    return "\n\n".join(blocks)


def table(*rows: Sequence[object]) -> str:
    """Rows of cells as aligned lines: the first column to the left, numbers to the right."""
    texts = [[text(cell) for cell in row] for row in rows]
    first, *others = (max(map(len, column)) for column in zip(*texts, strict=True))
    return "\n".join(
        row[0].ljust(first) + "".join(c.rjust(w + 3) for c, w in zip(row[1:], others, strict=True))
        for row in texts
    )


def text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def cells(share: Share) -> list[object]:
    """Number and percentage."""
    return [share.objects, None if share.percent is None else f"{share.percent:.1f}"]


def histogram(name: str, distribution: Distribution) -> str:
    """A line for each bin: its half-open limits, its count, a bar."""
    edges, counts = distribution.edges, distribution.counts
    limits = [f"{low:g} to < {high:g}" for low, high in itertools.pairwise(edges)]
    lines = table(*([limit, n] for limit, n in zip(limits, counts, strict=True))).splitlines()
    drawn = ("#" * round(LONGEST_BAR * n / max(counts)) for n in counts)
    return "\n".join(
        [name, *(f"{line} {bar}".rstrip() for line, bar in zip(lines, drawn, strict=True))]
    )


if __name__ == "__main__":
    run(main)

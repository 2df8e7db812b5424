"""Pack a downloaded tree of Cityscapes, IDD or Mapillary Vistas into shards, once.

Reads, in the official layouts,

  --cityscapes  leftImg8bit/ and gtFine/ (gtCoarse/ for train_extra)
  --idd         leftImg8bit/ and gtFine/ with polygons, of the Indian Driving Dataset
  --vistas      training/ and validation/ with images/ and panoptic/, of Mapillary Vistas v1.2

and writes {split}_{k}of{n}.safetensors and index.json. All images are checked first, and everything
that is wrong with them is listed; so is the room on the disk. Safe to interrupt, however hard: the
same command continues behind the last finished shard.

An image of 1024 x 2048 px takes 6.3 MB: 18.8 GB for train, 3.2 GB for val, 126 GB for train_extra.
On a small disk, --image-codec stores it without loss in less, and reads it slower:

  zstd         3.0 MB,  5 ms a read (none: 0.25 ms)
  jpeg2000-ht  1.9 MB, 22 ms a read; needs pip install imagecodecs

What is odd in a tree is read, passed over with one line that counts it, or refused:
datasets/README.md has the table.

Images of IDD and Vistas differ in size. Each takes the room of --size, and keeps its own size;
only one that is larger is shrunk until it fits, with its annotation.

examples:
  python datasets/prepare_shards.py --cityscapes DIR --output DIR --verify
  python datasets/prepare_shards.py --cityscapes DIR --output DIR --splits train_extra
      --cities augsburg bremen dortmund dresden wuppertal --image-codec jpeg2000-ht
  python datasets/prepare_shards.py --vistas DIR --output DIR --size 1024 1365 --image-codec zstd
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2_cityscapes.commands.cli import HelpFormatter

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    roots = parser.add_mutually_exclusive_group(required=True)
    roots.add_argument("--cityscapes", type=Path, metavar="DIR", help="root of the Cityscapes tree")
    roots.add_argument("--idd", type=Path, metavar="DIR", help="root of the IDD tree")
    roots.add_argument("--vistas", type=Path, metavar="DIR", help="root of the Vistas tree")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder of the shards, usually cityscapes_shards, idd_shards or vistas_shards in "
        "$DETECTRON2_DATASETS",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["train", "val"],
        help="of train, val, and in Cityscapes train_extra and test (to write submissions for)",
    )
    parser.add_argument(
        "--partitions",
        nargs="+",
        default=[],
        metavar="SPLIT=N",
        help="number of shards of a split; without it train=8 val=4 train_extra=16 test=4, of "
        "Vistas train=32 val=4",
    )
    parser.add_argument(
        "--cities", nargs="+", default=[], help="only these cities of Cityscapes; none: all"
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="room of an image of IDD (default 1080 1920) or Vistas (1536 2048)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="only the first N images of each split",
    )
    parser.add_argument("--workers", type=int, default=2, help="decoding processes")
    parser.add_argument(
        "--annotation-codec",
        choices=["zstd", "raw"],
        default="zstd",
        help="zstd: 13 kB an id map; raw: plain uint16, 4 MB an id map",
    )
    parser.add_argument(
        "--image-codec",
        choices=["none", "zstd", "jpeg2000-ht"],
        default="none",
        help="none: 6.3 MB an image; the others save room, see above",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read shards and PNGs again afterwards and list what differs",
    )
    args = parser.parse_args(argv)
    if args.cityscapes and args.size:
        parser.error("--size is for --idd and --vistas; images of Cityscapes have one size")
    if args.cities and not args.cityscapes:
        parser.error("--cities is for --cityscapes")
    if args.size and min(args.size) < 1:
        parser.error("--size takes two numbers from 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    from d2_cityscapes.labels import LABEL_TABLES
    from d2_cityscapes.shards.verifier import verify_shards
    from d2_cityscapes.shards.writer import write_splits
    from d2_cityscapes.sources import cityscapes, idd, vistas

    name, layout = next(
        (name, layout)
        for name, layout in {"cityscapes": cityscapes, "idd": idd, "vistas": vistas}.items()
        if getattr(args, name)
    )
    table = LABEL_TABLES[name]
    options = {"cities": args.cities} if name == "cityscapes" else {}
    if args.size:
        options["canvas"] = tuple(args.size)
    partitions = cityscapes.parse_partitions(args.partitions, layout.DEFAULT_PARTITIONS)
    sources = layout.find_splits(getattr(args, name), args.splits, limit=args.limit, **options)
    shards = write_splits(
        sources,
        args.output,
        partitions=partitions,
        annotation_codec=args.annotation_codec,
        image_codec=args.image_codec,
        workers=args.workers,
        table=table,
        progress=True,
    )
    for split, found in sources.items():
        if args.verify:
            verify_shards(
                found,
                args.output,
                split=split,
                workers=args.workers,
                table=table,
                progress=True,
            )
        size = sum(path.stat().st_size for path in shards[split]) / 1e9
        print(
            f"{split}: {len(found)} images in {len(shards[split])} shards, {size:.2f} GB, "
            f"in {args.output}"
        )

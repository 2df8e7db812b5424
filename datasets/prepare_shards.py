#!/usr/bin/env python
"""Pack a downloaded Cityscapes tree into shards, once.

Reads leftImg8bit/ and gtFine/ (gtCoarse/ for train_extra) and writes {split}_{k}of{n}.safetensors
and index.json. All images are checked first, and everything that is wrong with them is listed; so
is the room on the disk. Safe to interrupt, however hard: the same command continues behind the last
finished shard.

An image of 1024 x 2048 px takes 6.3 MB: 18.8 GB for train, 3.2 GB for val, 126 GB for train_extra.
On a small disk, --image-codec stores it without loss in less, and reads it slower:

  zstd         3.0 MB,  5 ms a read (none: 0.25 ms)
  jpeg2000-ht  1.9 MB, 22 ms a read; needs pip install imagecodecs

examples:
  python datasets/prepare_shards.py --cityscapes DIR --output DIR --verify
  python datasets/prepare_shards.py --cityscapes DIR --output DIR --splits train_extra
      --cities augsburg bremen dortmund dresden wuppertal --image-codec jpeg2000-ht
"""

import argparse
from pathlib import Path

from d2_cityscapes.cli import HelpFormatter, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--cityscapes", type=Path, required=True, help="root of the Cityscapes tree"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder of the shards, usually $DETECTRON2_DATASETS/cityscapes_shards",
    )
    parser.add_argument(
        "--splits", nargs="+", default=["train", "val"], help="of train, val, train_extra"
    )
    parser.add_argument(
        "--partitions",
        nargs="+",
        default=["train=8", "val=4", "train_extra=16"],
        metavar="SPLIT=N",
        help="number of shards of a split; the others keep their default",
    )
    parser.add_argument(
        "--cities", nargs="+", default=[], help="only these cities; none named: all"
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
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from d2_cityscapes.data.cityscapes import find_splits, parse_partitions
    from d2_cityscapes.data.shard_verifier import verify_shards
    from d2_cityscapes.data.shard_writer import write_splits

    partitions = parse_partitions(args.partitions)
    sources = find_splits(args.cityscapes, args.splits, cities=args.cities, limit=args.limit)
    shards = write_splits(
        sources,
        args.output,
        partitions=partitions,
        annotation_codec=args.annotation_codec,
        image_codec=args.image_codec,
        workers=args.workers,
        progress=True,
    )
    for split, found in sources.items():
        if args.verify:
            verify_shards(found, args.output, split=split, workers=args.workers, progress=True)
        size = sum(path.stat().st_size for path in shards[split]) / 1e9
        print(
            f"{split}: {len(found)} images in {len(shards[split])} shards, {size:.2f} GB, "
            f"in {args.output}"
        )


if __name__ == "__main__":
    run(main)

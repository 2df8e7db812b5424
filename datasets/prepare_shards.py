#!/usr/bin/env python
"""Pack a downloaded Cityscapes tree into shards, once.

Reads leftImg8bit/ and gtFine/ (gtCoarse/ for train_extra) and writes {split}_{k}of{n}.safetensors
and index.json. Safe to interrupt: the same command continues where it was.
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
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="splits to pack")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes")
    parser.add_argument(
        "--annotation-codec",
        choices=["zstd", "raw"],
        default="zstd",
        help="zstd: 13 kB an id map; raw: plain uint16, 4 MB an id map",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare the shards with the PNGs after"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from d2_cityscapes.data.cityscapes import DEFAULT_PARTITIONS, find_sources
    from d2_cityscapes.data.shard_writer import verify_shards, write_shards

    sources = {split: find_sources(args.cityscapes, split) for split in args.splits}
    for split, found in sources.items():
        shards = write_shards(
            found,
            args.output,
            split=split,
            partitions=DEFAULT_PARTITIONS[split],
            annotation_codec=args.annotation_codec,
            workers=args.workers,
            progress=True,
        )
        if args.verify:
            verify_shards(found, args.output, split=split, progress=True)
        size = sum(path.stat().st_size for path in shards) / 1e9
        print(
            f"{split}: {len(found)} images in {len(shards)} shards, {size:.2f} GB, in {args.output}"
        )


if __name__ == "__main__":
    run(main)

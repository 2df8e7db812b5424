"""Pack pictures and their annotations into shards, once: data sets, or classes of one's own.

Reads data sets in their official layouts,

  --cityscapes  leftImg8bit/ and gtFine/ (gtCoarse/ for train_extra)
  --idd         leftImg8bit/ and gtFine/ with polygons, of the Indian Driving Dataset
  --vistas      training/ and validation/ with images/ and panoptic/, of Mapillary Vistas v1.2

and what annotation tools write,

  --coco-json   a JSON of COCO, CVAT, Roboflow, Label Studio or labelme2coco; pictures in --images
  --labelme     a folder of pictures with labelme's JSON files

and writes {split}_{k}of{n}.safetensors and index.json. All images are checked first, and everything
that is wrong with them is listed; so is the room on the disk. Safe to interrupt, however hard: the
same command continues behind the last finished shard.

An image of 1024 x 2048 px takes 6.3 MB: 18.8 GB for train, 3.2 GB for val, 126 GB for train_extra.
On a small disk, --image-codec stores it without loss in less, and reads it slower:

  zstd         3.0 MB,  5 ms a read (none: 0.25 ms)
  jpeg2000-ht  1.9 MB, 22 ms a read; needs pip install imagecodecs

What is odd in a tree is read, passed over with one line that counts it, or refused:
datasets/README.md has the table.

Images of all but Cityscapes may differ in size. Each takes the room of --size, and keeps its own
size; only one that is larger is shrunk until it fits, with its annotation.

Classes of one's own come from the file: all of them are things, but for --stuff NAME ... and
isthing 0. Or --classes FILE names them, a YAML file such as the classes.yaml that is written
beside the shards; docs/own_data.md has its form. A folder keeps its classes for every split. Where
objects overlap, the later one in the file lies on top; what is annotated nowhere is void, or
--background NAME. --output NAME_shards makes the data sets NAME_shards_train and NAME_shards_val;
the lines that train on them are printed.

examples:
  d2c prepare --cityscapes DIR --output DIR --verify
  d2c prepare --cityscapes DIR --output DIR --splits train_extra
      --cities augsburg bremen dortmund dresden wuppertal --image-codec jpeg2000-ht
  d2c prepare --vistas DIR --output DIR --size 1024 1365 --image-codec zstd
  d2c prepare --labelme DIR --output data/harbour_shards --val-share 0.2 --stuff water quay
  d2c prepare --coco-json train.json --images DIR --output data/harbour_shards --split train
  d2c prepare --coco-json val.json --images DIR --output data/harbour_shards --split val
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2_cityscapes.commands.cli import HelpFormatter
from d2_cityscapes.commands.own_data import (
    check_arguments,
    default_partitions,
    find_own,
    next_steps,
)

if TYPE_CHECKING:
    from d2_cityscapes.labels import LabelTable
    from d2_cityscapes.sources.check import Source

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    roots = parser.add_mutually_exclusive_group(required=True)
    roots.add_argument("--cityscapes", type=Path, metavar="DIR", help="root of the Cityscapes tree")
    roots.add_argument("--idd", type=Path, metavar="DIR", help="root of the IDD tree")
    roots.add_argument("--vistas", type=Path, metavar="DIR", help="root of the Vistas tree")
    roots.add_argument("--coco-json", type=Path, metavar="FILE", help="objects in COCO's format")
    roots.add_argument("--labelme", type=Path, metavar="DIR", help="pictures with labelme's JSONs")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="the pictures of --coco-json: its file names begin here",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder of the shards, usually cityscapes_shards, idd_shards, vistas_shards or a "
        "NAME_shards of one's own in $DETECTRON2_DATASETS",
    )
    parser.add_argument(
        "--splits",
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="of train, val, and in Cityscapes train_extra and test (to write submissions for); "
        "without it train and val. Of --coco-json and --labelme the one that the images are",
    )
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="X",
        help="of --coco-json and --labelme without --split: this part of the images, 0.1 where not "
        "given, chosen by a checksum of their names, becomes val",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="classes of --coco-json and --labelme: a YAML file, or cityscapes, idd, vistas",
    )
    parser.add_argument(
        "--stuff",
        nargs="+",
        metavar="NAME",
        help="classes of --coco-json and --labelme that have no instances, such as sky",
    )
    parser.add_argument(
        "--background",
        metavar="NAME",
        help="of --coco-json and --labelme: the class, without instances, of what is annotated "
        "nowhere; without it that is void, which never trains",
    )
    parser.add_argument(
        "--boxes",
        action="store_true",
        help="of --coco-json: objects with a box and no outline become that rectangle",
    )
    parser.add_argument(
        "--crowd",
        choices=["group", "object"],
        help="of --coco-json: what iscrowd makes of an object; without it a group region, which "
        "never trains, and a file that says so of most objects, as CVAT of brush masks, is refused",
    )
    parser.add_argument(
        "--partitions",
        nargs="+",
        default=[],
        metavar="SPLIT=N",
        help="number of shards of a split; without it train=8 val=4 train_extra=16 test=4, of "
        "Vistas train=32 val=4, of --coco-json and --labelme one for 256 images",
    )
    parser.add_argument(
        "--cities", nargs="+", default=[], help="only these cities of Cityscapes; none: all"
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="room of an image of IDD (default 1080 1920), Vistas (1536 2048), or, as large as the "
        "largest one of the split, of --coco-json and --labelme",
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
        parser.error("--size is for images that may differ in size; those of Cityscapes do not")
    if args.cities and not args.cityscapes:
        parser.error("--cities is for --cityscapes")
    if args.size and min(args.size) < 1:
        parser.error("--size takes two numbers from 1")
    if _is_own(args):
        check_arguments(parser, args)
    else:
        for name in ("images", "val_share", "classes", "stuff", "background", "boxes", "crowd"):
            if getattr(args, name):
                option = name.replace("_", "-")
                parser.error(f"--{option} is for --coco-json and --labelme")
    return args


def _is_own(args: argparse.Namespace) -> bool:
    return bool(args.coco_json or args.labelme)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    from d2_cityscapes.shards.verifier import verify_shards
    from d2_cityscapes.shards.writer import write_splits
    from d2_cityscapes.sources.cityscapes import parse_partitions

    sources: Mapping[str, Sequence[Source]]
    if _is_own(args):
        sources, table = find_own(args)
        partitions = parse_partitions(args.partitions, default_partitions(sources))
    else:
        sources, table, partitions = _find_data_set(args)
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
    if _is_own(args):
        print(f"\n{next_steps(args.output, table)}")


def _find_data_set(
    args: argparse.Namespace,
) -> tuple[Mapping[str, Sequence[Source]], LabelTable, dict[str, int]]:
    """Sources by split, classes, and numbers of shards."""
    from d2_cityscapes.labels import LABEL_TABLES
    from d2_cityscapes.sources import cityscapes, idd, vistas

    name, layout = next(
        (name, layout)
        for name, layout in {"cityscapes": cityscapes, "idd": idd, "vistas": vistas}.items()
        if getattr(args, name)
    )
    options: dict[str, Any] = {"cities": args.cities} if name == "cityscapes" else {}
    if args.size:
        options["canvas"] = tuple(args.size)
    partitions = cityscapes.parse_partitions(args.partitions, layout.DEFAULT_PARTITIONS)
    splits = args.splits or ["train", "val"]
    sources = layout.find_splits(getattr(args, name), splits, limit=args.limit, **options)
    return sources, LABEL_TABLES[name], partitions

"""What ``prepare`` does with classes of one's own: COCO JSON and labelme folders."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from d2_cityscapes.errors import D2CityscapesError, first_few

if TYPE_CHECKING:
    from d2_cityscapes.labels import LabelTable
    from d2_cityscapes.sources.objects import ObjectSource

__all__ = ["check_arguments", "default_partitions", "find_own", "next_steps"]

_SUFFIX = "_shards"
_FOLDER = re.compile(rf"[A-Za-z0-9][\w.-]*{_SUFFIX}")
_SPLIT = re.compile(r"[A-Za-z][\w-]*")
_IMAGES_A_SHARD = 256
_SHOWN = 12  # classes
# What is predicted -> a config to try, and one to train with.
_CONFIGS = {
    "instances": ("quick/instance.yaml", "baselines/mask_rcnn_R_50_FPN.yaml"),
    "panoptics": ("quick/panoptic.yaml", "panoptic/seamless_R_50_FPN_1gpu.yaml"),
    "semantics": ("quick/semantic.yaml", "semantic/deeplabv3_R_50_768x1024_semantic19.yaml"),
}


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Leave with code 2 where the arguments do not go together."""
    if args.coco_json and not args.images:
        parser.error("--coco-json needs --images DIR, the folder that its file names begin in")
    if args.images and not args.coco_json:
        parser.error("--images is for --coco-json; labelme's files name their pictures")
    for name in ("boxes", "crowd"):
        if getattr(args, name) and not args.coco_json:
            parser.error(f"--{name} is for --coco-json")
    if args.classes and args.stuff:
        parser.error("--stuff is for classes of the file; --classes FILE says which are stuff")
    if args.labelme and args.output.resolve().is_relative_to(args.labelme.resolve()):
        parser.error(
            f"--output {args.output}: lies in the folder of --labelme, whose JSON files are all "
            "read; name a place beside it"
        )
    if not _FOLDER.fullmatch(args.output.name):
        parser.error(
            f"--output {args.output}: call the folder NAME{_SUFFIX}, by which training finds it"
        )
    if args.splits and args.val_share is not None:
        parser.error("--split and --val-share do not go together")
    if args.splits and (len(args.splits) > 1 or not _SPLIT.fullmatch(args.splits[0])):
        parser.error("--split takes one name here, such as train or val; run again for the next")


def find_own(args: argparse.Namespace) -> tuple[dict[str, list[ObjectSource]], LabelTable]:
    """Sources by split, and their classes: those of --classes, else of the folder that is there
    already, else of the file.

    Raises:
        D2CityscapesError: what is wrong with files or classes.
    """
    from d2_cityscapes.labels.table_file import find_table
    from d2_cityscapes.shards.reader import INDEX_NAME, folder_table
    from d2_cityscapes.sources.coco_instances import read_coco_instances
    from d2_cityscapes.sources.labelme import read_labelme

    table = find_table(args.classes) if args.classes else None
    if table is None and (args.output / INDEX_NAME).is_file():
        table = folder_table(args.output)
    if args.coco_json:
        found = read_coco_instances(args.coco_json, args.images, boxes=args.boxes, crowd=args.crowd)
    else:
        found = read_labelme(args.labelme, workers=args.workers, progress=True)
    stuff = args.stuff or ()
    if table is None:
        name = args.output.name.removesuffix(_SUFFIX)
        table = found.table(name, stuff=stuff, background=args.background)
    elif other := set(stuff) - {c.name for c in table.stuff}:
        raise D2CityscapesError(
            f"{args.output}: {first_few(sorted(other), 4)} of --stuff is no stuff in the classes "
            "of this folder, which all its splits share; name another folder, or leave it out"
        )
    sources = found.splits(
        table,
        split=args.splits[0] if args.splits else None,
        val_share=0.1 if args.val_share is None else args.val_share,
        background=args.background,
        canvas=tuple(args.size) if args.size else None,
        limit=args.limit,
    )
    return sources, table


def default_partitions(sources: Mapping[str, Collection[ObjectSource]]) -> dict[str, int]:
    """Split -> number of shards."""
    return {split: -(-len(found) // _IMAGES_A_SHARD) for split, found in sources.items()}


def next_steps(output: Path, table: LabelTable) -> str:
    """The classes, and the lines that train on them, to be copied."""
    from d2_cityscapes.shards.reader import TABLE_NAME, read_index

    shards = read_index(output)["shards"]
    splits = dict.fromkeys(entry["split"] for entry in shards)
    height, width = max(entry["image_size"] for entry in shards)
    things, stuff = ([c.name for c in kind] for kind in (table.things, table.stuff))
    classes = [f"{len(things)} things ({first_few(things, _SHOWN)})"] * bool(things)
    classes += [f"{len(stuff)} stuff ({first_few(stuff, _SHOWN)})"] * bool(stuff)
    kind = "semantics" if not things else "panoptics" if stuff else "instances"
    quick, config = _CONFIGS[kind]
    trained = "train" if "train" in splits else next(iter(splits))
    tested = f"'{output.name}_val'," if "val" in splits else ""
    overrides = [f"OUTPUT_DIR output/{output.name.removesuffix(_SUFFIX)}"]
    overrides += [f'DATASETS.TRAIN "(\'{output.name}_{trained}\',)" DATASETS.TEST "({tested})"']
    counts = [f"MODEL.ROI_HEADS.NUM_CLASSES {len(things)}"] * (kind != "semantics")
    counts += [f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(table.classes)}"] * (kind != "instances")
    overrides += [f'{" ".join(counts)} TEST.EXPECTED_RESULTS "[]"']
    own = output / TABLE_NAME
    return "\n".join(
        [
            f"classes: {', '.join(classes)}" + f"; names and colors are in {own}" * own.is_file(),
            f"room of an image: {height} x {width} px (H x W), {3e-6 * height * width:.1f} MB if "
            "not compressed; --size and --image-codec make it less",
            "",
            f"To train on them ({kind}; {quick} only shows the way, {config} is for good):",
            "",
            f"  export DETECTRON2_DATASETS={shlex.quote(str(output.absolute().parent))}",
            f"  d2c train --config-file {quick} " + " \\\n      ".join(overrides),
        ]
    )

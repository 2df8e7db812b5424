"""Score anybody's panoptic predictions by the official rules: PQ, SQ, RQ, and PQ-dagger.

A faster csEvalPanopticSemanticLabeling with the same numbers; needs no Detectron2. Truth and
prediction may each come as

  PNGs of instance ids   label_id * 1000 + k for an instance, the plain label id for every other
                         pixel (of a thing: a group region, which in a prediction is void); flat or
                         in folders. Where there are *_instanceIds.png, other PNGs are left alone.
  COCO panoptic          NAME.json beside the folder NAME of its PNGs, as createPanopticImgs writes
                         them, or in the folder, as in Mapillary Vistas; give either. Categories
                         are recognised by their names; those of a prediction without any are the
                         truth's, or else label ids.
  shards                 a folder that d2c prepare wrote

and are matched by the name of the image: its file name or image_id less _leftImg8bit, _gtFine,
_instanceIds, _panoptic. The label ids of --labels idd are level3Id + 1 with 0 for void, those of
vistas the category ids of panoptic_2018.json, those of a YAML file its own.

Prints a table of all classes, and writes the numbers to --output. Every image of the truth must
have a prediction; predictions of other images are ignored.

examples:
  d2c evaluate --truth gtFine/val --prediction DIR --output results.json
  d2c evaluate --truth gtFine/cityscapes_panoptic_val.json
      --prediction DIR/cityscapes_panoptic_val.json --output results.json
  d2c evaluate --labels vistas --truth validation/panoptic
      --prediction DIR --output results.json
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from d2_cityscapes.commands.cli import HelpFormatter

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    for role in ("truth", "prediction"):
        parser.add_argument(
            f"--{role}", type=Path, required=True, metavar="DIR", help="folder or COCO JSON"
        )
    parser.add_argument("--output", type=Path, required=True, help="results.json to write")
    parser.add_argument(
        "--labels",
        metavar="TABLE",
        help="the classes: cityscapes, idd, vistas, or a YAML file such as the classes.yaml beside "
        "shards; without it those of the truth, where that is shards, or else cityscapes",
    )
    parser.add_argument("--split", help="which one of the truth, if it has several")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="decoding processes"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="score images without prediction as predicted void: all their segments are missed",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    started = time.perf_counter()
    from d2_cityscapes.evaluation.panoptic.files import find_panoptic_files
    from d2_cityscapes.evaluation.panoptic.report import format_panoptic, panoptic_rows
    from d2_cityscapes.evaluation.panoptic.scoring import missing_predictions, score_files
    from d2_cityscapes.evaluation.results import write_results
    from d2_cityscapes.labels import CITYSCAPES
    from d2_cityscapes.labels.table_file import find_table

    table = CITYSCAPES
    if args.labels:
        table = find_table(args.labels)
    elif (args.truth / "index.json").is_file():
        from d2_cityscapes.shards.reader import (
            folder_table,
        )  # imports torch, which PNGs do not need

        table = folder_table(args.truth)
    truth = find_panoptic_files(args.truth, truth=True, split=args.split, table=table)
    prediction = find_panoptic_files(
        args.prediction, truth=False, categories=truth.categories, table=table
    )
    for files in (truth, prediction):
        files.check_output(args.output)
    quality = score_files(
        truth,
        prediction,
        table=table,
        workers=args.workers,
        allow_missing=args.allow_missing,
        progress=True,
    )
    rows = panoptic_rows(
        quality,
        dataset=" ".join(filter(None, [str(args.truth), args.split])),
        images=len(truth.maps),
        per_class=("PQ", "SQ", "RQ", "PQ_dagger"),
    )
    print(f"{len(truth.maps)} images of {truth.path}, predictions of {prediction.path}")
    if missing := missing_predictions(truth, prediction):
        print(f"{len(missing)} of them without prediction: all their segments are missed")
    print(f"\n{format_panoptic(quality)}\n", flush=True)  # seen, whatever becomes of the file
    write_results(args.output, rows, seconds=time.perf_counter() - started)
    print(f"wrote {args.output}")

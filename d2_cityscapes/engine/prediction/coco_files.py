"""Predictions as COCO has them: results of instances, and panoptic maps with their JSON.

Both are written as they come, so that memory does not grow with the number of pictures.

Shape letters: N detections; H, W pixels of a picture.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from d2_cityscapes.engine.prediction.marks import MARK
from d2_cityscapes.engine.prediction.pictures import PictureError
from d2_cityscapes.engine.prediction.writers import Seen, Writer
from d2_cityscapes.evaluation.detections import detections_of
from d2_cityscapes.evaluation.instances.rle import encode_crop, encode_mask
from d2_cityscapes.evaluation.submission.writer import (
    as_colors,
    panoptic_categories,
    panoptic_segments,
)
from d2_cityscapes.files import open_atomically, write_json
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.png import write_picture
from d2_cityscapes.sources.errors import document_errors, load_document
from d2_cityscapes.sources.names import image_name
from d2_cityscapes.structures import CroppedMasks

__all__ = [
    "IMAGES",
    "PANOPTIC",
    "RESULTS",
    "CocoIds",
    "coco_writer",
    "is_own_json",
    "panoptic_writer",
]

RESULTS = "coco_instances_results.json"  # for COCO.loadRes, as Detectron2's evaluator calls it
IMAGES = "coco_images.json"  # the images and categories that its ids mean
PANOPTIC = "panoptic"  # the folder of the maps; the JSON beside it


class CocoIds:
    """Numbers of images and categories in the results: counted, or those of a truth."""

    def __init__(self, table: LabelTable, truth: Path | None = None) -> None:
        """
        Args:
            table: the classes.
            truth: a COCO JSON of annotations whose "images" and "categories" are meant; None to
                count from 1.

        Raises:
            PictureError: another kind of file, or one that has none of the classes.
        """
        self.truth = truth
        self.categories = {thing: thing + 1 for thing in range(len(table.things))}
        self.left_out = 0  # detections of classes that the truth does not have
        self._images: dict[str, Any] = {}  # by path, and by what the files of an image share
        if truth is None:
            return
        with document_errors(truth, "a COCO JSON of annotations"):
            document = load_document(truth)
            paths = {_stem(x["file_name"]): x["id"] for x in document["images"]}
            short = Counter(image_name(Path(path).name) for path in paths)
            once = {image_name(Path(path).name): number for path, number in paths.items()}
            self._images = {name: once[name] for name, n in short.items() if n == 1} | paths
            by_name = {str(c["name"]): c["id"] for c in document["categories"]}
        names = {thing: c.name for thing, c in enumerate(table.things)}
        self.categories = {t: by_name[name] for t, name in names.items() if name in by_name}
        if not self.categories:
            raise PictureError(
                f"{truth}: has no category of {', '.join(names.values())}, which this model knows"
            )

    def check(self, names: Iterable[str]) -> None:
        """Refuse pictures that the truth does not have."""
        missing = [name for name in names if self.truth and self._in_truth(name) is None]
        if missing:
            raise PictureError(
                f"{self.truth}: has no image {missing[0]}"
                f"{f', and {len(missing) - 1} others that are here' if missing[1:] else ''}; "
                "predict the pictures that it lists"
            )

    def of_image(self, name: str, counted: int) -> Any:
        """The id of an image, given how many came before."""
        return counted + 1 if self.truth is None else self._in_truth(name)

    def _in_truth(self, name: str) -> Any:
        return self._images.get(name, self._images.get(image_name(Path(name).name)))


class _CocoWriter:
    def __init__(self, file: BinaryIO, ids: CocoIds) -> None:
        self._file, self._ids = file, ids
        self._written = 0
        self.images: list[dict[str, Any]] = []

    def write(self, seen: Seen) -> None:
        height, width = seen.image.shape[:2]
        image_id = self._ids.of_image(seen.name, len(self.images))
        self.images.append(
            {"id": image_id, "file_name": seen.file_name, "height": height, "width": width}
        )
        for row in _results(seen):
            category = self._ids.categories.get(row["category_id"])
            if category is None:
                self._ids.left_out += 1
                continue
            text = json.dumps({"image_id": image_id, **row, "category_id": category})
            self._file.write(f"{',' if self._written else '['}\n{text}".encode())
            self._written += 1

    def close(self) -> None:
        self._file.write(b"\n]\n" if self._written else b"[]\n")


@contextlib.contextmanager
def coco_writer(output: Path, table: LabelTable, ids: CocoIds) -> Iterator[Writer]:
    """All detections of all pictures as COCO's results, for ``COCO(truth).loadRes(file)``.

    coco_instances_results.json has "image_id", "category_id", "bbox" (XYWH pixels), "score" and,
    of models with masks, "segmentation" (RLE). coco_images.json is a COCO JSON without annotations
    that says which images and categories are meant.
    """
    with open_atomically(output / RESULTS) as file:
        writer = _CocoWriter(file, ids)
        yield writer
        writer.close()
    categories = [
        {"id": ids.categories[thing], "name": c.name}
        for thing, c in enumerate(table.things)
        if thing in ids.categories
    ]
    document = {
        "info": {"description": MARK},
        "images": writer.images,
        "annotations": [],
        "categories": categories,
    }
    write_json(output / IMAGES, document)


class _PanopticWriter:
    def __init__(self, folder: Path, table: LabelTable, names: Iterable[str]) -> None:
        self._folder, self._table = folder, table
        short = {name: PurePosixPath(name).name for name in names}
        times = Counter(short.values())
        self._image_ids = {name: own for name, own in short.items() if times[own] == 1}
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def write(self, seen: Seen) -> None:
        file_name = f"{seen.name}_panoptic.png"
        write_picture(self._folder / file_name, as_colors(seen.ids), comment=MARK)
        height, width = seen.ids.shape
        image_id = self._image_ids.get(seen.name, seen.name)
        image = {"id": image_id, "file_name": seen.file_name, "height": height, "width": width}
        segments = panoptic_segments(seen.ids, self._table)
        self.images.append(image)
        self.annotations.append(
            {"image_id": image_id, "file_name": file_name, "segments_info": segments}
        )


@contextlib.contextmanager
def panoptic_writer(output: Path, table: LabelTable, names: Iterable[str]) -> Iterator[Writer]:
    """panoptic/<name>_panoptic.png with ids R + 256 G + 65536 B, and panoptic.json beside it.

    In COCO's panoptic format: the id of a segment is its instance id, its category the label id.

    Args:
        output: the folder.
        table: the classes.
        names: of the pictures. An image's id is the last part of its name, by which evaluations
            know it, where no other has that; else the name, as of frames of videos.
    """
    writer = _PanopticWriter(output / PANOPTIC, table, names)
    yield writer
    document = {
        "info": {"description": MARK},
        "images": writer.images,
        "annotations": writer.annotations,
        "categories": panoptic_categories(table),
    }
    write_json(output / f"{PANOPTIC}.json", document)


def _stem(file_name: str) -> str:
    """A path without ending, as pictures are named here."""
    return PurePosixPath(file_name).with_suffix("").as_posix()


def is_own_json(path: Path) -> bool:
    """Whether a JSON was written here, by its "info"."""
    try:
        with document_errors(path, "a JSON"):
            return load_document(path)["info"]["description"] == MARK
    except Exception:  # of other kinds, which fail in any way
        return False


def _results(seen: Seen) -> Iterator[Mapping[str, Any]]:
    """A dict for each detection, with the thing id as category."""
    found = seen.output["instances"].to("cpu")
    boxes, things, scores = detections_of(found, seen.table)
    masks = found.pred_masks if found.has("pred_masks") else None
    for n, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        row: dict[str, Any] = {
            "category_id": int(things[n]),
            "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
            "score": round(float(scores[n]), 5),
        }
        if masks is not None:
            row["segmentation"] = _run_lengths(masks, n)
        yield row


def _run_lengths(masks: Any, index: int) -> dict[str, Any]:
    if isinstance(masks, CroppedMasks):
        crop = masks.crop(index)
        found = encode_crop(crop.pixels, crop.top, crop.left, masks.image_size)
    else:
        found = encode_mask(np.ascontiguousarray(masks[index].numpy()))
    return {"size": found["size"], "counts": found["counts"].decode()}

"""The PNG tree as stock Detectron2 lists it, whichever Detectron2 there is.

What comes out equals that of Detectron2 0.6's ``load_cityscapes_instances``. That of its main
branch imports a package that nobody else has, and ends with an ImportError.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES, INSTANCE_DIVISOR
from d2_cityscapes.sources.cityscapes import PngSource, find_sources
from d2_cityscapes.sources.names import IDS_SUFFIX
from d2_cityscapes.worker_pool import map_in_order, worker_pool

__all__ = ["STOCK", "best_stock", "mask_format", "read_tree"]

# Ways in which stock Detectron2 reads the tree: name -> arguments of load_cityscapes_instances.
STOCK = {
    "png-polygons": {"from_json": False, "to_polygons": True},
    "png-rle": {"from_json": False, "to_polygons": False},
    "json-polygons": {"from_json": True, "to_polygons": True},
}
_NEEDS = {"png-polygons": ("cv2", "opencv-python-headless"), "json-polygons": ("shapely",) * 2}
_THINGS = {c.label_id: c.thing_id for c in CITYSCAPES.things}
_LABELS = {name: label for label, name in CITYSCAPES.label_names}
_GROUP = "group"


def mask_format(name: str) -> str:
    """INPUT.MASK_FORMAT for what one of the ways of `STOCK` gives."""
    return "polygon" if STOCK[name]["to_polygons"] else "bitmask"


def best_stock() -> str:
    """The way that costs Detectron2 least in a step, of those whose packages are installed."""
    for name in ("json-polygons", "png-polygons"):
        if importlib.util.find_spec(_NEEDS[name][0]) is not None:
            return name
    return "png-rle"


def read_tree(cityscapes: Path, split: str, name: str, *, workers: int = 0) -> list[dict]:
    """Dataset dicts of a split, one an image, in one of the ways of `STOCK`.

    Boxes are XYXY_ABS in px: of the outermost pixels (png-...), or of polygons that are half a
    pixel larger than drawn (json-...). Category ids are 0..7.

    Args:
        cityscapes: root of the PNG tree.
        split: "train" or "val".
        name: key of `STOCK`.
        workers: processes; 0 for as many as there are cores, up to 8.

    Raises:
        D2CityscapesError: no such split, or a package that this way needs is not installed.
    """
    module, package = _NEEDS.get(name, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        raise D2CityscapesError(
            f"stock Detectron2 reads {name} with {module}: pip install {package}, or --stock "
            f"{best_stock()}"
        )
    sources = find_sources(cityscapes, split)
    read = _from_json if STOCK[name]["from_json"] else partial(_from_png, name)
    workers = min(workers or os.cpu_count() or 1, 8, max(len(sources) // 4, 1))
    with worker_pool(workers) as pool:
        return list(map_in_order(pool, read, sources))


def _record(source: PngSource, size: tuple[int, int], annotations: list[dict]) -> dict:
    height, width = size
    return {
        "file_name": str(source.image_path),
        "image_id": source.file_name,
        "height": height,
        "width": width,
        "annotations": annotations,
    }


def _from_png(name: str, source: PngSource) -> dict:
    ids = np.asarray(source.instance_ids(), order="F")
    found = []
    for instance_id in np.unique(ids).tolist():
        label = instance_id // INSTANCE_DIVISOR if instance_id >= INSTANCE_DIVISOR else instance_id
        if label not in _THINGS:
            continue
        mask = np.asarray(ids == instance_id, dtype=np.uint8, order="F")
        rows, columns = np.nonzero(mask)
        box = columns.min(), rows.min(), columns.max(), rows.max()
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        segmentation = _polygons(mask) if name == "png-polygons" else _rle(mask)
        if segmentation:
            crowd = instance_id < INSTANCE_DIVISOR
            found.append(_annotation(label, box, segmentation, crowd=crowd))
    return _record(source, (ids.shape[0], ids.shape[1]), found)


def _polygons(mask: np.ndarray) -> list[list[float]]:
    import cv2

    contours = cv2.findContours(mask.copy(), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[-2]
    return [contour.reshape(-1).tolist() for contour in contours if len(contour) >= 3]


def _rle(mask: np.ndarray) -> dict:
    from pycocotools import mask as rle

    return rle.encode(mask[:, :, None])[0]


def _from_json(source: PngSource) -> dict:
    """Polygons as drawn, a later one on top of an earlier, each half a pixel larger."""
    from shapely.geometry import Polygon

    assert source.ids_path is not None
    stem = source.ids_path.name.removesuffix(IDS_SUFFIX)
    content = json.loads(source.ids_path.with_name(f"{stem}_polygons.json").read_text())
    above, found = Polygon(), []
    for label_name, corners in _drawn(content["objects"]):
        outline = Polygon(np.asarray(corners, dtype="f4") + 0.5).buffer(0.5, quad_segs=4)
        label = _LABELS.get(label_name, _LABELS.get(label_name.removesuffix(_GROUP)))
        if label in _THINGS:
            visible = outline.difference(above)
            if visible.is_empty:
                continue
            parts = getattr(visible, "geoms", [visible])
            segmentation = [list(itertools.chain(*part.exterior.coords)) for part in parts]
            crowd = label_name.endswith(_GROUP)
            found.append(_annotation(label, visible.bounds, segmentation, crowd=crowd))
        above = above.union(outline)
    return _record(source, (content["imgHeight"], content["imgWidth"]), found)


def _drawn(objects: list[dict]) -> Iterator[tuple[str, list]]:
    """Label and corners of all that counts, the topmost first."""
    for drawn in reversed(objects):
        if "deleted" not in drawn and drawn["label"] != "license plate":
            yield drawn["label"], drawn["polygon"]


def _annotation(label: int, box: tuple, segmentation: object, *, crowd: bool) -> dict:
    return {
        "iscrowd": crowd,
        "category_id": _THINGS[label],
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "segmentation": segmentation,
    }

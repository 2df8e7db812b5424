"""The official folder tree of Mapillary Vistas v1.2 as sources for shards.

Annotations are COCO panoptic: a PNG of segments for each image, and one JSON for all. v2.0 of the
dataset brings those of v1.2 along, in folders of that name.

Shape letters: H, W pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2_cityscapes.labels import VISTAS
from d2_cityscapes.png import RGB, check_png
from d2_cityscapes.sources.check import Size, check_limit
from d2_cityscapes.sources.coco_panoptic import CocoPng, read_coco_panoptic
from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.sources.listing import by_name, list_files
from d2_cityscapes.sources.photo import PhotoSource

__all__ = ["DEFAULT_CANVAS", "DEFAULT_PARTITIONS", "VistasSource", "find_splits"]

# Most images are 4:3, and far larger.
DEFAULT_CANVAS = (1536, 2048)
DEFAULT_PARTITIONS = {"train": 32, "val": 4}
_FOLDERS = {"train": "training", "val": "validation"}
_JSON = "panoptic_2018.json"
_PHOTOS = (".jpg", ".jpeg")


@dataclass(frozen=True)
class VistasSource(PhotoSource):
    """An image and its PNG of panoptic segments.

    Attributes:
        segments: the PNG with the instance ids of its segments.
    """

    segments: CocoPng

    @property
    def fingerprint(self) -> str:
        # what the segments are stands in the JSON of all images
        listed = repr((self.segments.segment_ids, self.segments.instance_ids))
        return f"{super().fingerprint} {zlib.crc32(listed.encode()):08x}"

    def read_annotation(self) -> np.ndarray:
        """(H, W) uint16 instance ids."""
        check_png(self.annotation_path, RGB)
        return self.segments.read()


def find_splits(
    root: str | Path,
    splits: Sequence[str],
    *,
    canvas: Size = DEFAULT_CANVAS,
    limit: int | None = None,
) -> dict[str, list[VistasSource]]:
    """The annotated images of splits, sorted by name.

    Looks for ``{training,validation}/images/*.jpg`` and ``panoptic/panoptic_2018.json`` with its
    PNGs beside ``images`` or in ``v1.2`` there. Where an image or a PNG is missing, the source is
    listed all the same, and says so when it is checked. Several segments of a stuff class, or
    groups of a thing class, become one.

    Args:
        root: the folder of training and validation.
        splits: "train" and "val".
        canvas: (H, W); larger images are shrunk.
        limit: only the first so many of each split.

    Raises:
        SourceError: another split, or no images or no annotations at all.
        SourceError: the JSON is not that of Vistas v1.2, or lists more than 1000 instances of
            a class in an image.
    """
    check_limit(limit)
    return {split: _find_split(Path(root), split, canvas)[:limit] for split in splits}


def _find_split(root: Path, split: str, canvas: Size) -> list[VistasSource]:
    if split not in _FOLDERS:
        raise SourceError(f"split {split!r}; Mapillary Vistas has {', '.join(_FOLDERS)}")
    folder = root / _FOLDERS[split]
    photos = by_name(list_files(folder / "images", "*", "", _PHOTOS), lambda path: path.stem)
    jsons = [folder / place / "panoptic" / _JSON for place in (".", "v1.2")]
    json_path = next((path for path in jsons if path.is_file()), None)
    if not photos or json_path is None:
        missing = f"panoptic/{_JSON}" if photos else "images/*.jpg"
        raise SourceError(
            f"{folder}: no {missing}; expected the Mapillary Vistas root with training/ and "
            "validation/ (see datasets/README.md)"
        )
    maps, _ = read_coco_panoptic(json_path, groups=True, table=VISTAS, merge=True)
    sources = []
    for name in sorted({*photos, *maps}):
        photo = photos.get(name, folder / "images" / f"{name}.jpg")
        segments = maps.get(name, CocoPng(json_path.with_name(f"{name}.png"), (0,), (0,)))
        sources.append(VistasSource(photo, segments.path, photo.name, canvas, segments))
    return sources

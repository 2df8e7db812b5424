"""A made-up tree of Mapillary Vistas, as it unpacks: photos, and panoptic PNGs with their JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from d2_cityscapes.labels import VISTAS

__all__ = ["CATEGORIES", "NUMBER", "SIZES", "make_vistas_tree", "save_segments", "segments_of"]

NUMBER = {c.name: c.label_id for c in VISTAS.classes}
CATEGORIES = [
    {"id": c.label_id, "name": c.name, "isthing": int(c.is_thing), "color": c.color}
    for c in VISTAS.classes
]
SIZES = {"a_-Z": (36, 48), "b": (60, 45), "c": (96, 128)}  # the last two are shrunk


def segments_of(size: tuple[int, int], split: str) -> tuple[np.ndarray, list[dict]]:
    """Segment ids (H, W), and their list: sky, road (in training in two parts), a bird, two of the
    last thing class, a crowd of cars, the ego vehicle; void at the left."""
    height, width = size
    middle = height // 2
    parts = [
        ("Sky", 0, 0, width, middle),
        ("Road", 0, middle, width // 2, height),
        ("Road", width // 2, middle, width, height),
        ("Bird", 8, 2, 16, 8),
        ("Wheeled Slow", 4, middle, 12, middle + 8),
        ("Wheeled Slow", 16, middle, 24, middle + 8),
        ("Car", 28, middle, 40, middle + 8),
        ("Ego Vehicle", 0, height - 4, width, height),
    ]
    segments = np.zeros(size, dtype=np.int64)
    infos = []
    if split == "validation":
        parts[1:3] = [("Road", 0, middle, width, height)]
    for i, (name, left, top, right, bottom) in enumerate(parts):
        number = 1000 * i + 70_000 * (i % 2) + 1  # larger than two bytes
        segments[top:bottom, left:right] = number
        infos.append({"id": number, "category_id": NUMBER[name], "iscrowd": int(name == "Car")})
    segments[:, :2] = 0
    return segments, infos


def save_segments(path: Path, segments: np.ndarray) -> None:
    """A PNG of segment ids (H, W), a byte of each in a channel."""
    rgb = np.stack([segments % 256, segments // 256 % 256, segments // 65536], axis=2)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


def make_vistas_tree(root: Path, sizes: Mapping[str, tuple[int, int]] = SIZES) -> Path:
    """Write training and validation with a picture for each name -> (height, width)."""
    rng = np.random.default_rng(4)
    for folder, place in (("training", "v1.2/panoptic"), ("validation", "panoptic")):
        (root / folder / "images").mkdir(parents=True)
        panoptic = root / folder / place
        panoptic.mkdir(parents=True)
        annotations = []
        for name, size in sizes.items():
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / "images" / f"{name}.jpg")
            segments, infos = segments_of(size, folder)
            save_segments(panoptic / f"{name}.png", segments)
            annotations.append(
                {"image_id": name, "file_name": f"{name}.png", "segments_info": infos}
            )
        document = {"categories": CATEGORIES, "annotations": annotations}
        (panoptic / "panoptic_2018.json").write_text(json.dumps(document))
    return root

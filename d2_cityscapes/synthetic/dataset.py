"""Made-up street scenes in the layout of the official Cityscapes download.

    root/leftImg8bit/{split}/{city}/{city}_{sequence}_{frame}_leftImg8bit.png
    root/gtFine/{split}/{city}/{city}_{sequence}_{frame}_gtFine_{instanceIds,labelIds,color}.png
    root/gtFine/{split}/{city}/{city}_{sequence}_{frame}_gtFine_polygons.json
    root/gtCoarse/train_extra/...                   the same with coarse polygons, for train_extra

The content of an image depends on the seed, its split, its index and the picture size alone.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import lock_folder, remove_temporaries, write_atomically, write_json
from d2_cityscapes.labels import INSTANCE_DIVISOR
from d2_cityscapes.labels.cityscapes import CITYSCAPES_LABELS
from d2_cityscapes.memory import keep_freed_memory
from d2_cityscapes.png import encode_png
from d2_cityscapes.synthetic.street.canvas import draw_ids
from d2_cityscapes.synthetic.street.scene import Scene, render_scene
from d2_cityscapes.synthetic.street.sprites import (
    Polygon,
    as_polygon,
    rasterize,
    simplify,
    trace_outline,
)
from d2_cityscapes.worker_pool import map_in_order, worker_pool

__all__ = [
    "Scene",
    "SyntheticError",
    "coarse_objects",
    "image_name",
    "make_tree",
    "render_scene",
    "write_scene",
]

MARKER = "make_synthetic.json"
MIN_SIZE = (64, 128)  # height, width, px
_SPLITS = ("train", "val", "train_extra")
_VERSION = 1  # of the scenes: counts up when the same arguments begin to give other pictures

_CITIES = {
    "train": (
        "aachen", "bochum", "bremen", "cologne", "darmstadt", "dusseldorf", "erfurt", "hamburg",
        "hanover", "jena", "krefeld", "monchengladbach", "strasbourg", "stuttgart", "tubingen",
        "ulm", "weimar", "zurich",
    ),
    "val": ("frankfurt", "lindau", "munster"),
    "train_extra": (
        "augsburg", "bad-honnef", "bamberg", "bayreuth", "dortmund", "dresden", "duisburg",
        "erlangen", "freiburg", "heidelberg", "heilbronn", "karlsruhe", "konigswinter", "konstanz",
        "mannheim", "muhlheim-ruhr", "nuremberg", "oberhausen", "saarbrucken", "schweinfurt",
        "troisdorf", "wuppertal", "wurzburg",
    ),
}  # fmt: skip
_LONG_SEQUENCES = {"bochum", "hamburg", "hanover", "krefeld", "monchengladbach", "frankfurt"}


class SyntheticError(D2CityscapesError):
    """A tree of made-up scenes cannot be written as asked for."""


def image_name(split: str, index: int) -> tuple[str, str]:
    """City and "{city}_{sequence}_{frame}" of the index-th image of a split.

    As in the original, most cities are cut into short sequences of which frame 19 is annotated, the
    others were filmed in one go.
    """
    cities = _CITIES[split]
    city, number = cities[index % len(cities)], index // len(cities)
    if city in _LONG_SEQUENCES:
        sequence, frame = number // 1000, 294 + 282 * (number % 1000)
    else:
        sequence, frame = number, 19
    return city, f"{city}_{sequence:06d}_{frame:06d}"


def coarse_objects(scene: Scene) -> list[tuple[str, Polygon]]:
    """Polygons as a hasty annotator would draw them, in drawing order.

    Each lies well inside its object, small and thin objects have none, and what is left between
    them is unlabeled; so a coarse label is never wrong, just often missing.
    """
    height, width = scene.instance_ids.shape
    margin = max(1, height // 80)
    objects: list[tuple[str, Polygon]] = []
    for label, polygon in scene.objects:
        if label == "license plate":
            continue
        objects.append(("unlabeled", polygon))
        xs, ys = zip(*polygon, strict=True)
        if min(max(xs) - min(xs), max(ys) - min(ys)) < 3 * margin:
            continue
        x0, y0 = max(0, min(xs) - margin), max(0, min(ys) - margin)
        x1, y1 = min(width, max(xs) + 1 + margin), min(height, max(ys) + 1 + margin)
        mask = rasterize([(x - x0, y - y0) for x, y in polygon], (x1 - x0, y1 - y0))
        soft = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(margin))
        outline = simplify(trace_outline(np.asarray(soft) == 255), 0.7 * margin)
        if len(outline) >= 3:
            objects.append((label, as_polygon(outline + np.array((x0, y0)))))
    return objects


def write_scene(scene: Scene, root: Path, split: str, index: int) -> None:
    """Write one scene's files under ``root``; every file appears whole or not at all."""
    height, width = scene.instance_ids.shape
    objects, ids = scene.objects, scene.instance_ids
    if split == "train_extra":
        objects = coarse_objects(scene)
        ids = draw_ids(objects, (width, height))
    label_ids = np.where(ids < INSTANCE_DIVISOR, ids, ids // INSTANCE_DIVISOR).astype(np.uint8)
    colors = _label_colors().take(label_ids, axis=0)
    picture, *maps, polygons = _files(root, split, index)
    for path, array in zip(maps, (ids, label_ids, colors), strict=True):
        write_atomically(path, [encode_png(array)])
    document = {
        "imgHeight": height,
        "imgWidth": width,
        "objects": [{"label": label, "polygon": polygon} for label, polygon in objects],
    }
    write_atomically(polygons, [json.dumps(document).encode()])
    write_atomically(picture, [encode_png(scene.image)])


def make_tree(
    output: str | os.PathLike[str],
    *,
    train: int,
    val: int,
    height: int,
    width: int,
    seed: int,
    train_extra: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> Path:
    """Write a tree of made-up scenes; returns its root.

    A folder that a killed call left behind is completed; the same arguments give the same bytes.

    Args:
        output: folder to write; new, empty, or made by an earlier call with the same arguments.
        train, val, train_extra: number of images of each split; train_extra has coarse annotations.
        height, width: size of the pictures, px.
        seed: another seed gives other scenes.
        workers: number of processes.
        progress: show a progress bar.

    Raises:
        SyntheticError: for arguments out of range, or a folder that holds something else.
        D2CityscapesError: a worker was killed, or another process writes into the folder.
    """
    counts = {"train": train, "val": val, "train_extra": train_extra}
    for name, count in counts.items():
        if count < 0:
            raise SyntheticError(f"number of {name} images is {count}: give 0 or more")
    if height < MIN_SIZE[0] or width < MIN_SIZE[1]:
        raise SyntheticError(
            f"picture size {height} x {width} (height x width) is too small: "
            f"give at least {MIN_SIZE[0]} x {MIN_SIZE[1]}"
        )
    if workers < 1:
        raise SyntheticError(f"number of workers is {workers}: give 1 or more")
    if seed < 0:
        raise SyntheticError(f"seed is {seed}: give 0 or more")
    root = Path(output)
    if root.exists() and not root.is_dir():
        raise SyntheticError(f"{root}: is a file; give a folder")
    work = functools.partial(_make_one, root, height, width, seed)
    total = sum(counts.values())
    with worker_pool(workers) as pool, lock_folder(root) as locked:
        if locked:  # what a killed call left behind: before all else, or the folder is not empty
            remove_temporaries(root, (MARKER,))
        _claim(
            root, {**counts, "height": height, "width": width, "seed": seed, "version": _VERSION}
        )
        if locked:
            for folder in root.glob("*/*/*/"):
                remove_temporaries(folder, ("*.png", "*.json"))
        pending = [
            (split, index)
            for split in _SPLITS
            for index in range(counts[split])
            if not all(path.exists() for path in _files(root, split, index))
        ]
        with tqdm(
            initial=total - len(pending),
            total=total,
            unit="image",
            desc="scenes",
            disable=not progress,
        ) as bar:
            for _ in map_in_order(pool, work, pending):
                bar.update()
    return root


def _make_one(root: Path, height: int, width: int, seed: int, which: tuple[str, int]) -> None:
    split, index = which
    keep_freed_memory()
    rng = np.random.default_rng([seed, _SPLITS.index(split), index])
    with _without_collector():
        write_scene(render_scene(height, width, rng=rng), root, split, index)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Nothing is collected inside: of a scene all is in use, and is looked through many times."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _claim(root: Path, arguments: dict[str, int]) -> None:
    """Make ``root`` ours, or refuse it."""
    marker = root / MARKER
    if marker.exists():
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != arguments:
            raise SyntheticError(
                f"{root}: holds scenes made with other arguments (see {MARKER}); "
                "give another folder or delete this one"
            )
        return
    if root.exists() and any(root.iterdir()):
        raise SyntheticError(
            f"{root}: is not empty and not made by this command; give another folder"
        )
    write_json(marker, arguments)


def _files(root: Path, split: str, index: int) -> list[Path]:
    """The files of one image: picture, instanceIds, labelIds, color, polygons."""
    city, stem = image_name(split, index)
    kind = "gtCoarse" if split == "train_extra" else "gtFine"
    truth = root / kind / split / city
    names = ("instanceIds.png", "labelIds.png", "color.png", "polygons.json")
    picture = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    return [picture, *(truth / f"{stem}_{kind}_{name}" for name in names)]


@functools.cache
def _label_colors() -> np.ndarray:
    """uint8 (34, 4): RGBA of every label id, as in the official colour maps."""
    colors = {label.label_id: label.color for label in CITYSCAPES_LABELS.values()}
    return np.array([(*colors[i], 255) for i in range(max(colors) + 1)], dtype=np.uint8)

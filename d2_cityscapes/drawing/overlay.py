"""Pictures of maps of instance ids, laid over the image.

Shape letters: H, W pixels of the map; h, w pixels of the picture.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from d2_cityscapes.labels import CITYSCAPES, INSTANCE_DIVISOR, VOID_TRAIN_ID, LabelTable

__all__ = ["draw_instance_ids", "segment_color", "side_by_side"]

_STUFF_OPACITY, _THING_OPACITY = 0.45, 0.65
_NAMED_AREA = 0.003  # of the picture: smaller segments get no name
_AT_ONCE = 1 << 20  # pixels that are painted together
_GAP, _CAPTION = 8, 34  # pixels between and above panels


def draw_instance_ids(
    image: np.ndarray,
    instance_ids: np.ndarray,
    table: LabelTable = CITYSCAPES,
    *,
    width: int = 1024,
) -> np.ndarray:
    """Lay the segments of a map over an image: class colours that vary between instances, outlines
    around instances, names on what is large enough. Void stays as it is in the image.

    Args:
        image: (H, W, 3) uint8 RGB.
        instance_ids: (H, W) integers, in the encoding of `d2_cityscapes.labels`.
        table: the classes.
        width: of the picture in pixels; the image is resized to it.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    base, ids = _resized(image, (height, width)), _nearest(instance_ids, (height, width))
    values = np.unique(np.concatenate([np.unique(ids[rows]) for rows in _bands(ids.shape)]))
    segments = np.empty(ids.shape, dtype=np.uint16 if len(values) <= 1 << 16 else np.int32)
    for rows in _bands(ids.shape):
        segments[rows] = np.searchsorted(values, ids[rows])
    train_ids = table.train_id_of[values]
    things = table.thing_id_of_train[train_ids] >= 0
    colors = np.array([segment_color(int(v), table) for v in values], dtype=np.float32)
    opacity = np.where(things, _THING_OPACITY, _STUFF_OPACITY).astype(np.float32)
    opacity[train_ids == VOID_TRAIN_ID] = 0

    inner, outer = _outlines(segments, things)
    painted = np.empty_like(base)
    order = np.zeros(len(values), dtype=np.int64)
    for rows in _bands(ids.shape):
        own = segments[rows]
        order += np.bincount(own.ravel(), minlength=len(values))
        weight = opacity[own][..., None]
        picture = base[rows] * (1 - weight) + colors[own] * weight
        picture[outer[rows]] *= 0.35
        picture[inner[rows]] = 0.25 * picture[inner[rows]] + 0.75 * 255
        painted[rows] = picture.round().astype(np.uint8)
    del inner, outer
    canvas = Image.fromarray(painted)
    pen = ImageDraw.Draw(canvas)
    for index in np.argsort(-order):
        if train_ids[index] != VOID_TRAIN_ID and order[index] >= _NAMED_AREA * ids.size:
            _write_name(
                pen, segments == index, table.classes[train_ids[index]].name, bool(things[index])
            )
    return np.asarray(canvas)


def segment_color(instance_id: int, table: LabelTable = CITYSCAPES) -> tuple[int, int, int]:
    """RGB of a segment: the class's colour, for an instance varied in hue and brightness."""
    red, green, blue = (int(v) for v in table.colors[table.train_id_of[instance_id]])
    if instance_id < INSTANCE_DIVISOR:
        return red, green, blue
    # Steps by the golden ratio keep the colours of few and of many instances apart.
    step = (instance_id % INSTANCE_DIVISOR) * 0.618034 % 1
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    hue = (hue + 0.16 * (step - 0.5)) % 1
    value = 0.62 + 0.38 * (step * 2.7 % 1)
    red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.85 * saturation, value))
    return red, green, blue


def side_by_side(panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """(h, w, 3) uint8 pictures of one height in a row, each below its caption."""
    height = next(iter(panels.values())).shape[0]
    width = sum(panel.shape[1] for panel in panels.values()) + _GAP * (len(panels) - 1)
    canvas = Image.new("RGB", (width, height + _CAPTION), "white")
    pen = ImageDraw.Draw(canvas)
    left = 0
    for caption, panel in panels.items():
        pen.text((left + 4, _CAPTION / 2), caption, fill=(40, 40, 40), font=_font(20), anchor="lm")
        canvas.paste(Image.fromarray(panel), (left, _CAPTION))
        left += panel.shape[1] + _GAP
    return np.asarray(canvas)


def _bands(shape: tuple[int, ...]) -> list[slice]:
    """Rows of (h, w) that are painted together, so that no floats of all pixels are held."""
    step = max(_AT_ONCE // max(shape[1], 1), 1)
    return [slice(top, top + step) for top in range(0, shape[0], step)]


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8."""
    if image.shape[:2] == size:
        return image
    height, width = size
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) of an (H, W) map."""
    if ids.shape == size:
        return ids
    rows, columns = (np.arange(new) * old // new for old, new in zip(ids.shape, size, strict=True))
    return ids[rows[:, None], columns]


def _outlines(segments: np.ndarray, things: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) bool: the rim of every thing segment, and the pixels right outside of it."""
    inner = np.zeros(segments.shape, dtype=bool)
    outer = np.zeros(segments.shape, dtype=bool)
    thing = things[segments]
    here, there = np.s_[:, 1:], np.s_[:, :-1]
    for a, b in ((here, there), (there, here), (np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[1:])):
        differs = segments[a] != segments[b]
        inner[a] |= differs & thing[a]
        outer[a] |= differs & thing[b] & ~thing[a]
    return inner, outer


def _write_name(pen: ImageDraw.ImageDraw, mask: np.ndarray, name: str, thing: bool) -> None:
    """Write a name near the middle of the (h, w) segment; nowhere if the segment is too narrow."""
    font = _font(17 if thing else 20)
    length = pen.textlength(name, font=font)
    rows = np.flatnonzero(mask.any(axis=1))
    middle = np.average(rows, weights=mask[rows].sum(axis=1))
    best, widest, x, y = -np.inf, 0, 0.0, 0.0
    for row in rows[:: max(1, len(rows) // 24)]:
        edges = np.flatnonzero(np.diff(mask[row], prepend=False, append=False))
        starts, ends = edges[::2], edges[1::2]
        run = int(np.argmax(ends - starts))
        rank = min(ends[run] - starts[run], 1.5 * length) - abs(row - middle)
        if rank > best:
            best, widest = rank, int(ends[run] - starts[run])
            x, y = (starts[run] + ends[run]) / 2, float(row)
    if length <= widest * (1.3 if thing else 0.95):
        margin = length / 2 + 3
        x = min(max(x, margin), mask.shape[1] - margin)
        y = min(max(y, font.size), mask.shape[0] - font.size)
        pen.text(
            (x, y),
            name,
            fill="white",
            font=font,
            anchor="mm",
            stroke_width=2,
            stroke_fill="black",
        )


@functools.lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font that every installation has."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    return ImageFont.truetype(str(path), size)

"""Anchor sizes and ratios from the boxes of a dataset, and the file that carries them.

A *shape* is (width, height) in network pixels, i.e. after the resize of training. An anchor has a
size, the square root of its area, and an aspect ratio, **height / width** as in Detectron2 and
torchvision. Shape letters: N boxes, S sizes (one for each feature level), R ratios of a level,
A = S x R anchors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import write_json

__all__ = [
    "DEFAULT_RATIOS",
    "DEFAULT_SIZES",
    "AnchorError",
    "AnchorQuality",
    "AnchorSet",
    "Anchors",
    "anchor_quality",
    "anchor_shapes",
    "best_anchors",
    "best_shape_iou",
    "cluster_shapes",
    "cluster_shapes_as_published",
    "read_anchors",
    "rounded_anchors",
    "write_anchors",
]

# Detectron2's FPN anchors, the yardstick.
DEFAULT_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
DEFAULT_RATIOS = (0.5, 1.0, 2.0)

CONVENTION = "sizes: sqrt(width * height) in network pixels; aspect_ratios: height / width"
_RUN_TOOL = "run d2c anchors"
_PUBLISHED_TRIM = (3, 97)  # percentiles
_PUBLISHED_SEED = 42
_CHUNK = 65_536  # boxes at a time, to bound memory


class AnchorError(D2CityscapesError):
    """Boxes that cannot be clustered, or an anchor file that cannot be used."""


@dataclass(frozen=True)
class Anchors:
    """The anchors of a model: a size for each feature level, with several ratios.

    Attributes:
        sizes: sqrt(area) in network pixels, ascending; one for each feature level.
        aspect_ratios: height / width, ascending: one tuple for all levels, or one for each. So they
            are Detectron2's MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS.
    """

    sizes: tuple[float, ...]
    aspect_ratios: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class AnchorQuality:
    """How well anchors fit boxes of the same centre.

    Attributes:
        mean_best_iou: mean over boxes of the IoU with the best anchor.
        recall_50: share of boxes whose best anchor has IoU >= 0.5.
        recall_70: the same for 0.7, Detectron2's threshold for positive anchors.
    """

    mean_best_iou: float
    recall_50: float
    recall_70: float


@dataclass(frozen=True)
class AnchorSet:
    """The content of an anchor file, in the order of its JSON keys.

    Attributes:
        anchors: what the model uses.
        datasets: names of the datasets that the boxes come from.
        resize: {"min_size": [...], "max_size": ..., "sampling": ...}, the INPUT.*_TRAIN settings;
            "scale_jitter" and "crop_size" where INPUT.SCALE_JITTER is on.
        num_boxes: number of shapes that were clustered.
        seed: random_state of the k-means.
        method: MODEL.ANCHOR_GENERATOR.KMEANS.METHOD.
        quality: {"kmeans": of these anchors, "default": of Detectron2's}; also "separate", where
            the method is another.
    """

    anchors: Anchors
    datasets: tuple[str, ...]
    resize: dict[str, object]
    num_boxes: int
    seed: int
    method: str
    quality: dict[str, AnchorQuality]


def cluster_shapes(
    shapes: np.ndarray, num_sizes: int, num_ratios: int, *, seed: int = 0
) -> Anchors:
    """k-means on sqrt(area) for the sizes and, apart from it, on height / width for the ratios.

    Both on a logarithmic scale, because the IoU of two boxes depends on the quotients of their
    sides; on a linear scale the few largest boxes draw most of the centres to themselves.
    Deterministic: the same shapes and seed give the same anchors.

    Args:
        shapes: (N, 2) widths and heights, positive, network pixels.
        num_sizes: number of sizes.
        num_ratios: number of ratios.
        seed: random_state of scikit-learn's KMeans.

    Raises:
        AnchorError: no boxes, or fewer distinct ones than clusters.
    """
    widths, heights = _sides(shapes)
    sizes = _kmeans(np.log(widths * heights) / 2, num_sizes, seed, *_SIZES)
    ratios = _kmeans(np.log(heights / widths), num_ratios, seed, *_RATIOS)
    return rounded_anchors(np.exp(sizes), np.exp(ratios)[None])


def cluster_shapes_as_published(shapes: np.ndarray, num_sizes: int, num_ratios: int) -> Anchors:
    """The k-means of the staged paper: plain sqrt(area), and plain width / height.

    Of each the lowest and highest 3 % are left out. The published code uses the width / height that
    it finds as if they were height / width; here they are turned over. Its boxes are those of the
    full resolution, ours are as the network sees them.

    Args:
        shapes: (N, 2) widths and heights, positive, network pixels.
        num_sizes: number of sizes, 5 in the paper.
        num_ratios: number of ratios, 3 in the paper.

    Raises:
        AnchorError: no boxes, or fewer distinct ones than clusters.
    """
    widths, heights = _sides(shapes)
    areas, ratios = _trimmed(widths * heights), _trimmed(widths / heights)
    sizes = _kmeans(np.sqrt(areas), num_sizes, _PUBLISHED_SEED, *_SIZES)
    found = _kmeans(ratios, num_ratios, _PUBLISHED_SEED, *_RATIOS)
    return rounded_anchors(sizes, 1 / found[::-1][None])


def rounded_anchors(sizes: np.ndarray, ratios: np.ndarray) -> Anchors:
    """(S,) sizes and (1 or S, R) ratios, with the digits that an anchor file has."""
    return Anchors(
        tuple(round(float(size), 2) for size in sizes),
        tuple(tuple(round(float(ratio), 4) for ratio in level) for level in ratios),
    )


_SIZES = ("NUM_SIZES", "sizes")
_RATIOS = ("NUM_RATIOS", "height/width ratios")


def _sides(shapes: np.ndarray) -> np.ndarray:
    """(2, N) widths and heights."""
    if len(shapes) == 0:
        raise AnchorError("no boxes to cluster: the training datasets hold no instances")
    return np.asarray(shapes, dtype=np.float64).T


def _trimmed(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, _PUBLISHED_TRIM)
    return values[(values >= low) & (values <= high)]


def _kmeans(values: np.ndarray, clusters: int, seed: int, key: str, what: str) -> np.ndarray:
    """Ascending cluster centres of (N,) values."""
    from sklearn.cluster import KMeans

    distinct = len(np.unique(values))
    if not 1 <= clusters <= distinct:
        raise AnchorError(
            f"{len(values)} boxes with {distinct} distinct {what} cannot form {clusters} clusters: "
            f"set MODEL.ANCHOR_GENERATOR.KMEANS.{key} between 1 and {distinct}, or use more images"
        )
    fitted = KMeans(clusters, n_init=10, random_state=seed).fit(values[:, None])
    return np.sort(fitted.cluster_centers_[:, 0])


def anchor_shapes(sizes: npt.ArrayLike, aspect_ratios: npt.ArrayLike) -> np.ndarray:
    """(A, 2) widths and heights of every anchor, sizes outermost.

    Args:
        sizes: (S,).
        aspect_ratios: height / width: (R,) or (1, R) for all sizes, or (S, R).
    """
    sizes, root = np.asarray(sizes, dtype=float)[:, None], np.sqrt(aspect_ratios)
    return np.stack([sizes / root, sizes * root], axis=-1).reshape(-1, 2)


def best_shape_iou(shapes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(N,) IoU of each (N, 2) shape with the best of (A, 2) anchors placed at the same centre."""
    return best_anchors(shapes, anchors)[1]


def best_anchors(shapes: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `best_shape_iou`, with the (N,) index of the best anchor before it."""
    best, ious = [np.zeros(0, dtype=np.intp)], [np.zeros(0)]
    (anchor_widths, anchor_heights), anchor_areas = anchors.T, anchors.prod(axis=1)
    for start in range(0, len(shapes), _CHUNK):
        widths, heights = shapes[start : start + _CHUNK].T[..., None]
        common = np.minimum(widths, anchor_widths) * np.minimum(heights, anchor_heights)
        iou = common / (widths * heights + anchor_areas - common)
        best.append(iou.argmax(axis=1))
        ious.append(iou.max(axis=1))
    return np.concatenate(best), np.concatenate(ious)


def anchor_quality(
    shapes: np.ndarray, sizes: npt.ArrayLike, aspect_ratios: npt.ArrayLike
) -> AnchorQuality:
    """Fit of anchors to (N, 2) shapes, N > 0; the others as in `anchor_shapes`."""
    best = best_shape_iou(shapes, anchor_shapes(sizes, aspect_ratios))
    return AnchorQuality(
        *(float(x) for x in (best.mean(), (best >= 0.5).mean(), (best >= 0.7).mean()))
    )


def write_anchors(path: str | Path, anchor_set: AnchorSet) -> None:
    """Write an anchor file: JSON of "sizes", "aspect_ratios", "convention" and the rest.

    "aspect_ratios" is a list of numbers if they hold for all levels, a list of such lists if not.
    """
    content = asdict(anchor_set)
    anchors = content.pop("anchors")
    if len(anchors["aspect_ratios"]) == 1:
        anchors["aspect_ratios"] = anchors["aspect_ratios"][0]
    write_json(path, {**anchors, "convention": CONVENTION, **content})


def read_anchors(path: str | Path) -> AnchorSet:
    """Read what `write_anchors` wrote.

    Raises:
        AnchorError: no such file, or not such a file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise AnchorError(
            f"{path}: no anchor file there ({error.strerror}); {_RUN_TOOL}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise AnchorError(f"{path}: not a JSON file ({error}); {_RUN_TOOL} again") from error
    try:
        if content["convention"] != CONVENTION:
            raise ValueError(f"unknown convention {content['convention']!r}")
        return AnchorSet(
            _anchors(content["sizes"], content["aspect_ratios"]),
            tuple(content["datasets"]),
            dict(content["resize"]),
            int(content["num_boxes"]),
            int(content["seed"]),
            str(content.get("method", "separate")),  # older files have none
            {name: AnchorQuality(**quality) for name, quality in content["quality"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise AnchorError(f"{path}: not an anchor file ({reason}); {_RUN_TOOL} again") from error


def _anchors(sizes: list, aspect_ratios: list) -> Anchors:
    several = any(isinstance(ratios, list) for ratios in aspect_ratios)
    levels = aspect_ratios if several else [aspect_ratios]
    if len(levels) not in (1, len(sizes)) or len({len(ratios) for ratios in levels}) > 1:
        raise ValueError(f"aspect_ratios of {len(levels)} levels for {len(sizes)} sizes")
    return Anchors(
        _positive(sizes, "sizes"), tuple(_positive(ratios, "aspect_ratios") for ratios in levels)
    )


def _positive(numbers: list, key: str) -> tuple[float, ...]:
    values = tuple(float(value) for value in numbers)
    if not values or not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{key} are {list(values)}; expected positive numbers")
    return values

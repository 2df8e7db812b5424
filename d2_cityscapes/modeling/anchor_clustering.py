"""Anchor sizes and ratios from the boxes of a dataset, and the file that carries them.

A *shape* is (width, height) in network pixels, i.e. after the resize of training. An anchor has a
size, the square root of its area, and an aspect ratio, **height / width** as in Detectron2 and
torchvision. Shape letters: N boxes, A = sizes x ratios anchors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import write_atomically

__all__ = [
    "DEFAULT_RATIOS",
    "DEFAULT_SIZES",
    "AnchorError",
    "AnchorQuality",
    "AnchorSet",
    "Anchors",
    "anchor_quality",
    "anchor_shapes",
    "best_shape_iou",
    "cluster_shapes",
    "plot_anchors",
    "read_anchors",
    "write_anchors",
]

# Detectron2's FPN anchors, the yardstick.
DEFAULT_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
DEFAULT_RATIOS = (0.5, 1.0, 2.0)

CONVENTION = "sizes: sqrt(width * height) in network pixels; aspect_ratios: height / width"
_RUN_TOOL = "run tools/kmeans_anchors.py"
_CHUNK = 65_536  # boxes at a time, to bound memory


class AnchorError(D2CityscapesError):
    """Boxes that cannot be clustered, or an anchor file that cannot be used."""


@dataclass(frozen=True)
class Anchors:
    """Every size combined with every ratio.

    Attributes:
        sizes: sqrt(area) in network pixels, ascending; one for each feature level.
        aspect_ratios: height / width, ascending.
    """

    sizes: tuple[float, ...]
    aspect_ratios: tuple[float, ...]


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
        resize: {"min_size": [...], "max_size": ..., "sampling": ...}, the INPUT.*_TRAIN settings.
        num_boxes: number of shapes that were clustered.
        seed: random_state of the k-means.
        quality: {"kmeans": of these anchors, "default": of Detectron2's}.
    """

    anchors: Anchors
    datasets: tuple[str, ...]
    resize: dict[str, object]
    num_boxes: int
    seed: int
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
    if len(shapes) == 0:
        raise AnchorError("no boxes to cluster: the training datasets hold no instances")
    widths, heights = np.asarray(shapes, dtype=np.float64).T
    sizes = _kmeans(np.sqrt(widths * heights), num_sizes, seed, "NUM_SIZES", "sizes")
    ratios = _kmeans(heights / widths, num_ratios, seed, "NUM_RATIOS", "height/width ratios")
    return Anchors(tuple(round(s, 2) for s in sizes), tuple(round(r, 4) for r in ratios))


def _kmeans(values: np.ndarray, clusters: int, seed: int, key: str, what: str) -> list[float]:
    """Ascending cluster centres, geometric means, of (N,) positive values."""
    from sklearn.cluster import KMeans

    distinct = len(np.unique(values))
    if not 1 <= clusters <= distinct:
        raise AnchorError(
            f"{len(values)} boxes with {distinct} distinct {what} cannot form {clusters} clusters: "
            f"set MODEL.ANCHOR_GENERATOR.KMEANS.{key} between 1 and {distinct}, or use more images"
        )
    fitted = KMeans(clusters, n_init=10, random_state=seed).fit(np.log(values)[:, None])
    return sorted(float(centre) for centre in np.exp(fitted.cluster_centers_[:, 0]))


def anchor_shapes(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> np.ndarray:
    """(A, 2) widths and heights of every size with every height / width ratio, sizes outermost."""
    size, ratio = np.meshgrid(
        np.asarray(sizes, float), np.asarray(aspect_ratios, float), indexing="ij"
    )
    return np.stack([size / np.sqrt(ratio), size * np.sqrt(ratio)], axis=-1).reshape(-1, 2)


def best_shape_iou(shapes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(N,) IoU of each (N, 2) shape with the best of (A, 2) anchors placed at the same centre."""
    best = [np.zeros(0)]
    for start in range(0, len(shapes), _CHUNK):
        chunk = shapes[start : start + _CHUNK, None]
        common = np.minimum(chunk, anchors).prod(axis=-1)
        best.append((common / (chunk.prod(axis=-1) + anchors.prod(axis=-1) - common)).max(axis=1))
    return np.concatenate(best)


def anchor_quality(
    shapes: np.ndarray, sizes: Sequence[float], aspect_ratios: Sequence[float]
) -> AnchorQuality:
    """Fit of anchors to (N, 2) shapes, N > 0."""
    best = best_shape_iou(shapes, anchor_shapes(sizes, aspect_ratios))
    return AnchorQuality(
        *(float(x) for x in (best.mean(), (best >= 0.5).mean(), (best >= 0.7).mean()))
    )


def write_anchors(path: str | Path, anchor_set: AnchorSet) -> None:
    """Write an anchor file: JSON of "sizes", "aspect_ratios", "convention" and the rest."""
    content = asdict(anchor_set)
    content = {**content.pop("anchors"), "convention": CONVENTION, **content}
    write_atomically(path, [json.dumps(content, indent=2).encode(), b"\n"])


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
    except ValueError as error:
        raise AnchorError(f"{path}: not a JSON file ({error}); {_RUN_TOOL} again") from error
    try:
        if content["convention"] != CONVENTION:
            raise ValueError(f"unknown convention {content['convention']!r}")
        return AnchorSet(
            Anchors(_positive(content, "sizes"), _positive(content, "aspect_ratios")),
            tuple(content["datasets"]),
            dict(content["resize"]),
            int(content["num_boxes"]),
            int(content["seed"]),
            {name: AnchorQuality(**quality) for name, quality in content["quality"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise AnchorError(f"{path}: not an anchor file ({reason}); {_RUN_TOOL} again") from error


def _positive(content: dict, key: str) -> tuple[float, ...]:
    values = tuple(float(value) for value in content[key])
    if not values or not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{key} are {list(values)}; expected positive numbers")
    return values


def plot_anchors(path: str | Path, shapes: np.ndarray, anchors: Anchors) -> None:
    """Write a PNG: the boxes with both sets of anchors, and the best IoU of both sets."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    boxes_axes, iou_axes = figure.subplots(1, 2)
    boxes_axes.scatter(*shapes[:20_000].T, s=2, alpha=0.25, color="0.6", label="training boxes")
    both = {
        "Detectron2 default": (DEFAULT_SIZES, DEFAULT_RATIOS, "tab:orange", "x"),
        "k-means": (anchors.sizes, anchors.aspect_ratios, "tab:blue", "o"),
    }
    for name, (sizes, ratios, color, marker) in both.items():
        placed = anchor_shapes(sizes, ratios)
        boxes_axes.scatter(*placed.T, s=30, color=color, marker=marker, label=name)
        best = best_shape_iou(shapes, placed)
        label = f"{name}: mean {best.mean():.3f}"
        iou_axes.hist(best, bins=np.linspace(0, 1, 51), color=color, alpha=0.55, label=label)
    boxes_axes.set(
        xscale="log", yscale="log", xlabel="width [network px]", ylabel="height [network px]"
    )
    iou_axes.set(xlabel="IoU with the best anchor", ylabel="boxes")
    for axes in (boxes_axes, iou_axes):
        axes.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    write_atomically(path, [png.getvalue()])

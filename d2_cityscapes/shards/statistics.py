"""What a dataset consists of: objects per image, sizes, classes and shapes, from its tables alone.

An *object* is an instance of a thing class; group regions are counted apart, as "groups". Lengths
are in pixels of the stored picture. Boxes are half-open: a one-pixel object is 1 wide; figures made
from inclusive boxes, as the paper's, are one pixel less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2_cityscapes.files import write_atomically
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.labels.instances import MEDIUM_AREA, SMALL_AREA, InstanceTable
from d2_cityscapes.png import figure_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "SIZE_RULES",
    "ClassCount",
    "DatasetStatistics",
    "Distribution",
    "Share",
    "dataset_statistics",
    "plot_statistics",
]

SIZE_RULES = {
    "small": "area <= 32^2",
    "medium": "32^2 < area <= 96^2",
    "large": "area > 96^2",
}
_CONVENTIONS = {
    "object": "an instance of a thing class; group regions are counted apart, as groups",
    "box": "half-open, pixels of the stored picture: a one-pixel object is 1 wide; figures made "
    "from inclusive boxes are one pixel less",
    "sizes": {**SIZE_RULES, "unit": "px^2"},
    "width_over_height": "width / height; the aspect ratio of anchors is its inverse",
    "histogram": "counts[i] is the number of values with edges[i] <= value < edges[i + 1]",
}

# Edges of the histograms, over all that an int32 box can be.
_LENGTH_EDGES = np.unique(np.round(2.0 ** np.arange(0, 31.5, 0.5)).astype(np.int64))
_RATIO_EDGES = np.array([float(f"{2.0**k:.3g}") for k in np.arange(-31, 31.25, 0.25)])
_OBJECTS_PER_BIN = 5


@dataclass(frozen=True)
class Share:
    """A number of objects and its percentage of all of them, None where there are none."""

    objects: int
    percent: float | None


@dataclass(frozen=True)
class ClassCount(Share):
    """The objects of one class.

    Attributes:
        images: number of images with at least one of them.
        groups: number of group regions of the class.
    """

    images: int
    groups: int


@dataclass(frozen=True)
class Distribution:
    """How values are distributed; where there is no value, None and no bins.

    Attributes:
        unit: of the values and edges.
        edges: (B + 1,) limits of the half-open bins, ascending, from the first to the last bin
            with a value in it.
        counts: (B,) number of values in each bin.
    """

    unit: str
    mean: float | None
    median: float | None
    min: float | None
    max: float | None
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class DatasetStatistics:
    """The figures of a dataset.

    Attributes:
        images: number of images.
        images_without_objects: how many of them hold no object.
        objects: number of objects.
        groups: number of group regions.
        objects_per_image: in bins of five.
        sizes: {"box" | "mask": {"small" | "medium" | "large": share}}, by which area.
        classes: name of every thing class -> its counts, in thing-id order.
        width, height: of the boxes; bins of half an octave with whole pixels as edges.
        width_over_height: of the boxes; bins of a quarter octave, edges to three digits.
    """

    images: int
    images_without_objects: int
    objects: int
    groups: int
    objects_per_image: Distribution
    sizes: dict[str, dict[str, Share]]
    classes: dict[str, ClassCount]
    width: Distribution
    height: Distribution
    width_over_height: Distribution

    def to_dict(self) -> dict:
        """Numbers, strings, lists and dicts for JSON, with the conventions in words."""
        return {"conventions": _CONVENTIONS, **asdict(self)}


def dataset_statistics(
    tables: Iterable[InstanceTable], label_table: LabelTable
) -> DatasetStatistics:
    """The figures of the images that the tables describe.

    Args:
        tables: one for each image.
        label_table: the classes of the tables.
    """
    tables = list(tables)
    every = InstanceTable.cat(tables)
    image_of = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    is_object = ~every.crowd
    objects = every.select(is_object)
    per_image = np.bincount(image_of[is_object], minlength=len(tables))
    sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).astype(np.int64)
    width, height = sides[:, 0], sides[:, 1]
    return DatasetStatistics(
        images=len(tables),
        images_without_objects=int((per_image == 0).sum()),
        objects=len(objects),
        groups=int(every.crowd.sum()),
        objects_per_image=_distribution(
            per_image,
            np.arange(0, per_image.max(initial=0) + _OBJECTS_PER_BIN + 1, _OBJECTS_PER_BIN),
            "objects",
        ),
        sizes={"box": _size_shares(width * height), "mask": _size_shares(objects.areas)},
        classes=_class_counts(every, image_of, len(tables), label_table),
        width=_distribution(width, _LENGTH_EDGES, "px"),
        height=_distribution(height, _LENGTH_EDGES, "px"),
        width_over_height=_distribution(width / height, _RATIO_EDGES, "1"),
    )


def _share(objects: int, total: int) -> Share:
    return Share(int(objects), float(100 * objects / total) if total else None)


def _size_shares(areas: np.ndarray) -> dict[str, Share]:
    """Size -> share of (N,) areas, px^2."""
    small, up_to_medium = (areas <= SMALL_AREA).sum(), (areas <= MEDIUM_AREA).sum()
    counts = (small, up_to_medium - small, len(areas) - up_to_medium)
    return {size: _share(n, len(areas)) for size, n in zip(SIZE_RULES, counts, strict=True)}


def _class_counts(
    every: InstanceTable, image_of: np.ndarray, images: int, label_table: LabelTable
) -> dict[str, ClassCount]:
    """Class name -> counts of the rows of all images; ``image_of`` (N,) is the image of a row."""
    names = [c.name for c in label_table.things]
    things = label_table.thing_id_of_train[every.classes]
    objects = np.bincount(things[~every.crowd], minlength=len(names))
    groups = np.bincount(things[every.crowd], minlength=len(names))
    occurs = np.zeros((images, len(names)), dtype=bool)
    occurs[image_of[~every.crowd], things[~every.crowd]] = True
    shares = [_share(n, objects.sum()) for n in objects]
    return {
        name: ClassCount(share.objects, share.percent, int(seen), int(grouped))
        for name, share, seen, grouped in zip(names, shares, occurs.sum(0), groups, strict=True)
    }


def _distribution(values: np.ndarray, edges: np.ndarray, unit: str) -> Distribution:
    """Of (N,) values that lie between the first and the last of the edges."""
    if len(values) == 0:
        return Distribution(unit, None, None, None, None, [], [])
    bins = np.searchsorted(edges, values, side="right") - 1
    first, last = bins.min(), bins.max()
    return Distribution(
        unit,
        mean=float(values.mean()),
        median=float(np.median(values)),
        min=float(values.min()),
        max=float(values.max()),
        edges=edges[first : last + 2].tolist(),
        counts=np.bincount(bins - first).tolist(),
    )


def plot_statistics(path: str | Path, statistics: DatasetStatistics, title: str) -> None:
    """Write a PNG: classes, sizes, objects per image, and the shapes of the boxes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), dpi=100)
    figure.set_layout_engine("constrained", hspace=0.06, wspace=0.03)
    figure.suptitle(f"{title}: {statistics.objects} objects in {statistics.images} images")
    axes = figure.subplots(2, 3)
    _plot_classes(axes[0, 0], statistics.classes)
    _plot_sizes(axes[0, 1], statistics.sizes)
    axes[0, 2].set(title="objects per image", ylabel="images")
    _plot_histogram(axes[0, 2], statistics.objects_per_image)
    shapes = {
        "box width [px]": statistics.width,
        "box height [px]": statistics.height,
        "box width / height": statistics.width_over_height,
    }
    for axis, (name, distribution) in zip(axes[1], shapes.items(), strict=True):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(
            lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
        )
        axis.set(title=name, ylabel="objects")
        _plot_histogram(axis, distribution)
    for axis in axes.ravel():
        axis.spines[["top", "right"]].set_visible(False)
    write_atomically(path, [figure_png(figure)])


def _plot_classes(axis: Axes, classes: dict[str, ClassCount]) -> None:
    bars = axis.barh(list(classes), [count.objects for count in classes.values()])
    axis.bar_label(bars, padding=3)
    axis.invert_yaxis()  # the first class on top
    axis.margins(x=0.12)  # room for the longest bar's number
    axis.set_xlim(left=0)
    axis.set(title="objects of each class")


def _plot_sizes(axis: Axes, sizes: dict[str, dict[str, Share]]) -> None:
    for offset, (kind, shares) in zip((-0.2, 0.2), sizes.items(), strict=True):
        percent = [share.percent or 0.0 for share in shares.values()]
        bars = axis.bar(np.arange(len(shares)) + offset, percent, 0.38, label=f"by {kind} area")
        axis.bar_label(bars, fmt="%.1f")
    labels = [f"{size}\n{rule}" for size, rule in SIZE_RULES.items()]
    axis.set_xticks(range(len(labels)), labels, fontsize=9)
    axis.set(title="object sizes [px^2]", ylabel="objects [%]")
    _legend_above(axis)


def _plot_histogram(axis: Axes, distribution: Distribution) -> None:
    if not distribution.counts:
        return
    axis.stairs(distribution.counts, distribution.edges, fill=True, alpha=0.7)
    for name, style in (("mean", "--"), ("median", "-")):
        value = getattr(distribution, name)
        label = f"{name} {value:.2f}"
        axis.axvline(value, ymax=0.87, color="black", linestyle=style, label=label)
    _legend_above(axis)


def _legend_above(axis: Axes) -> None:
    """A legend that covers no bar."""
    axis.margins(y=0.2)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, ncols=2, loc="upper center")

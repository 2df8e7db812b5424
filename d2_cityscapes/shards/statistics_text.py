"""The statistics of a dataset as text: tables, then histograms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from d2_cityscapes.shards.statistics import SIZE_RULES, DatasetStatistics, Distribution, Share

__all__ = ["format_statistics"]

_LONGEST_BAR = 40  # characters


def format_statistics(s: DatasetStatistics) -> str:
    """Tables, then histograms."""
    distributions = {
        "objects per image": s.objects_per_image,
        "box width [px]": s.width,
        "box height [px]": s.height,
        "box width / height": s.width_over_height,
    }
    blocks = [
        _table(
            ["images", s.images],
            ["images without objects", s.images_without_objects],
            ["objects", s.objects],
            ["group regions (no objects)", s.groups],
        ),
        _table(
            ["class", "objects", "%", "images with it", "group regions"],
            *([name, *_cells(c), c.images, c.groups] for name, c in s.classes.items()),
        ),
        _table(
            ["size [px^2]", "by box area", "%", "by mask area", "%"],
            *(
                [f"{size:<7} {rule}", *_cells(s.sizes["box"][size]), *_cells(s.sizes["mask"][size])]
                for size, rule in SIZE_RULES.items()
            ),
        ),
        _table(
            ["", "mean", "median", "min", "max"],
            *([name, d.mean, d.median, d.min, d.max] for name, d in distributions.items()),
        ),
        *(_histogram(name, d) for name, d in distributions.items() if d.counts),
    ]
    return "\n\n".join(blocks)


def _table(*rows: Sequence[object]) -> str:
    """Rows of cells as aligned lines: the first column to the left, numbers to the right."""
    texts = [[_text(cell) for cell in row] for row in rows]
    first, *others = (max(map(len, column)) for column in zip(*texts, strict=True))
    return "\n".join(
        row[0].ljust(first) + "".join(c.rjust(w + 3) for c, w in zip(row[1:], others, strict=True))
        for row in texts
    )


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def _cells(share: Share) -> list[object]:
    """Number and percentage."""
    return [share.objects, None if share.percent is None else f"{share.percent:.1f}"]


def _histogram(name: str, distribution: Distribution) -> str:
    """A line for each bin: its half-open limits, its count, a bar."""
    edges, counts = distribution.edges, distribution.counts
    limits = [f"{low:g} to < {high:g}" for low, high in itertools.pairwise(edges)]
    lines = _table(*([limit, n] for limit, n in zip(limits, counts, strict=True))).splitlines()
    drawn = ("#" * round(_LONGEST_BAR * n / max(counts)) for n in counts)
    return "\n".join(
        [name, *(f"{line} {bar}".rstrip() for line, bar in zip(lines, drawn, strict=True))]
    )

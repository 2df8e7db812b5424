"""Panoptic quality as rows of results.json and as a table to read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from d2_cityscapes.evaluation.class_means import mean_of_seen
from d2_cityscapes.evaluation.panoptic.quality import PanopticQuality, class_groups
from d2_cityscapes.evaluation.results import ResultRow, make_rows, percent_text
from d2_cityscapes.labels import LabelClass

__all__ = ["format_panoptic", "panoptic_rows"]

# Protocol -> the metrics that follow its rules.
_PROTOCOLS = {"panopticapi": ("PQ", "SQ", "RQ"), "Seamless": ("PQ_dagger",)}
_COUNTS = ("tp", "fp", "fn")


def panoptic_rows(
    quality: PanopticQuality, *, dataset: str, images: int, per_class: Collection[str] = ("PQ",)
) -> list[ResultRow]:
    """The rows of task "panoptic_seg".

    Args:
        quality: the sums over the images.
        dataset: name of the scored dataset.
        images: number of scored images.
        per_class: which of PQ, SQ, RQ, PQ_dagger get a row for each class too, e.g. "PQ-car".
    """
    table, result = quality.table, quality.compute()
    classes_of = result.pop("per_class")

    def seen(metric: str, classes: Sequence[LabelClass]) -> int:
        return sum(classes_of[c.name][metric] is not None for c in classes)

    rows = []
    for protocol, metrics in _PROTOCOLS.items():
        scores = {
            metric + suffix: (result[metric + suffix], seen(metric, classes))
            for suffix, classes in class_groups(table).items()
            for metric in metrics
            if metric + suffix in result
        }
        scores |= {
            f"{metric}-{c.name}": (classes_of[c.name][metric], seen(metric, [c]))
            for metric in metrics
            if metric in per_class
            for c in table.classes
        }
        rows += make_rows("panoptic_seg", scores, protocol=protocol, dataset=dataset, images=images)
    return rows


def format_panoptic(quality: PanopticQuality) -> str:
    """A table of all classes and of the means over all, things and stuff; "-" where never seen."""
    per_class = quality.compute()["per_class"]
    table = quality.table
    width = max(len(name) for name in ("class", *per_class))
    header = f"{'class':<{width}}{'PQ':>8}{'SQ':>8}{'RQ':>8}{'PQ-dagger':>11}"
    header += "".join(f"{count:>8}" for count in _COUNTS)
    groups = {"All": table.classes, "Things": table.things, "Stuff": table.stuff}
    return "\n".join(
        [
            header,
            *(_line(name, width, row) for name, row in per_class.items()),
            "-" * len(header),
            *(
                _line(name, width, _summary([per_class[c.name] for c in classes]))
                for name, classes in groups.items()
            ),
            "",
            "percent; PQ, SQ, RQ and counts: rules of panopticapi and cityscapesscripts; "
            "PQ-dagger: Seamless",
        ]
    )


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of the qualities over the classes seen, and sums of the counts."""
    summary: dict[str, Any] = {count: sum(row[count] for row in rows) for count in _COUNTS}
    for metric in ("PQ", "SQ", "RQ", "PQ_dagger"):
        summary[metric] = mean_of_seen(row[metric] for row in rows)
    return summary


def _line(name: str, width: int, row: dict[str, Any]) -> str:
    line = f"{name:<{width}}" + "".join(f"{percent_text(row[m], 1):>8}" for m in ("PQ", "SQ", "RQ"))
    line += f"{percent_text(row['PQ_dagger'], 1):>11}"
    return line + "".join(f"{row[count]:>8}" for count in _COUNTS)

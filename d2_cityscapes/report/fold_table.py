"""The numbers of K folds: of each metric the mean over folds and how far they spread."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import ResultRow, percent_text
from d2_cityscapes.files import write_atomically, write_json
from d2_cityscapes.report.text_table import aligned, markdown_table

__all__ = ["FoldRow", "FoldTable", "make_fold_table", "read_fold_table", "write_fold_table"]

WORDS = 3  # of the columns


@dataclass(frozen=True)
class FoldRow:
    """A metric of a stage in every fold.

    Attributes:
        stage: its name, "stage2".
        task, metric, protocol, dataset: as in `ResultRow`; the folds of a data set have its name.
        values: of each fold, in percent; None where it has none, as of a class that is not there.
    """

    stage: str
    task: str
    metric: str
    protocol: str
    dataset: str
    values: tuple[float | None, ...]

    @property
    def known(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Over the folds that have a value; None where none has."""
        return math.fsum(self.known) / len(self.known) if self.known else None

    @property
    def sd(self) -> float | None:
        """Standard deviation of the folds (n - 1); None below two values."""
        return statistics.stdev(self.known) if len(self.known) > 1 else None

    @property
    def of_a_class(self) -> bool:
        return "-" in self.metric


@dataclass(frozen=True)
class FoldTable:
    """The metrics of all stages.

    Attributes:
        dataset: what was dealt to the folds.
        images: number of pictures that each fold was tested on.
        rows: in the order of the stages and of their results.
    """

    dataset: str
    images: tuple[int, ...]
    rows: tuple[FoldRow, ...]

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(row.stage for row in self.rows))

    @property
    def title(self) -> str:
        return f"{self.dataset}: {len(self.images)} folds"

    @property
    def note(self) -> str:
        return (
            f"Tested on {' + '.join(map(str, self.images))} pictures, each by a network that was "
            "trained on the other folds. Percent; sd: standard deviation over folds (n - 1); n: "
            "folds that have a value."
        )

    @property
    def head(self) -> list[str]:
        folds = [f"fold {k}" for k in range(1, len(self.images) + 1)]
        return ["task", "protocol", "metric", "mean", "sd", "n", *folds]

    def cells(self, stage: str, *, by_class: bool) -> list[list[str]]:
        """Lines of a stage under `head`: those of classes, or all others."""
        return [
            [
                row.task if row.dataset == self.dataset else f"{row.task} on {row.dataset}",
                row.protocol,
                row.metric,
                percent_text(row.mean),
                percent_text(row.sd),
                str(len(row.known)),
                *map(percent_text, row.values),
            ]
            for row in self.rows
            if row.stage == stage and row.of_a_class is by_class
        ]

    def text(self) -> str:
        """The last stage without its classes, for a terminal."""
        stage = self.stages[-1]
        head, *lines = aligned([self.head, *self.cells(stage, by_class=False)], words=WORDS)
        rule = "-" * max(map(len, (head, *lines)))
        return "\n".join([f"{self.title}, {stage}", self.note, head, rule, *lines])

    def markdown(self) -> str:
        parts = [f"# {self.title}", self.note]
        for stage in self.stages:
            lines = [*self.cells(stage, by_class=False), *self.cells(stage, by_class=True)]
            parts += [f"## {stage}", markdown_table(self.head, lines, words=WORDS)]
        return "\n\n".join(parts)

    def document(self) -> list[dict[str, Any]]:
        """The rows for JSON; numbers in percent, null where there is none."""
        return [
            {**asdict(row), "mean": row.mean, "sd": row.sd, "n": len(row.known)}
            for row in self.rows
        ]


def make_fold_table(
    dataset: str, images: Sequence[int], folds: Sequence[Mapping[str, Sequence[ResultRow]]]
) -> FoldTable:
    """
    Args:
        dataset, images: as of the table.
        folds: of each, name of a stage -> the rows of its results.json, whose dataset is that of
            the table where they are of its fold.
    """
    values: dict[tuple[str, str, str, str, str], dict[int, float | None]] = {}
    for fold, stages in enumerate(folds):
        for stage, rows in stages.items():
            for row in rows:
                key = (stage, row.task, row.metric, row.protocol, row.dataset)
                values.setdefault(key, {})[fold] = row.value
    order = list(dict.fromkeys(stage for stages in folds for stage in stages))
    found = [
        FoldRow(*key, tuple(own.get(i) for i in range(len(folds)))) for key, own in values.items()
    ]
    found.sort(key=lambda row: order.index(row.stage))
    return FoldTable(dataset, tuple(images), tuple(found))


def write_fold_table(table: FoldTable, record: Mapping[str, Any], output: Path) -> None:
    """Write ``output``, JSON of the record and the rows, and the table beside it as ``.md``."""
    write_json(output, {**record, "results": table.document()})
    write_atomically(output.with_suffix(".md"), [f"{table.markdown()}\n".encode()])


def read_fold_table(path: Path) -> FoldTable:
    """The table of a file that `write_fold_table` has written; without rows where it is to come.

    Raises:
        D2CityscapesError: the file is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            FoldRow(
                str(row["stage"]),
                str(row["task"]),
                str(row["metric"]),
                str(row["protocol"]),
                str(row["dataset"]),
                tuple(map(_number, row["values"])),
            )
            for row in document.get("results", [])
        ]
        return FoldTable(str(document["dataset"]), tuple(map(int, document["images"])), tuple(rows))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise D2CityscapesError(f"{path}: not the table of a run of folds ({error})") from error


def _number(value: Any) -> float | None:
    if value is None or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r} is no number")

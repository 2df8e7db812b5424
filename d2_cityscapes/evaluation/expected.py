"""TEST.EXPECTED_RESULTS: an evaluation as a gate.

An entry is [task, metric, value, tolerance] and holds for every scored dataset, or [dataset, task,
metric, value, tolerance]. The first form is Detectron2's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import ResultRow

__all__ = ["Expectation", "ExpectationError", "check_expected", "parse_expected"]


class ExpectationError(D2CityscapesError):
    """Results that are not what TEST.EXPECTED_RESULTS asks for, or an entry that asks nothing."""


@dataclass(frozen=True)
class Expectation:
    """One entry.

    Attributes:
        dataset: None for every scored dataset.
        task, metric: as in `ResultRow`.
        value, tolerance: percent; the bounds count as met.
    """

    dataset: str | None
    task: str
    metric: str
    value: float
    tolerance: float

    def __str__(self) -> str:
        where = f"{self.dataset} " if self.dataset else ""
        return f"{where}{self.task} {self.metric} {self.value:g} +- {self.tolerance:g}"

    def missed(self, rows: Sequence[ResultRow]) -> list[str]:
        """One line for each result that is missing or not within the tolerance."""
        datasets = [self.dataset] if self.dataset else sorted({row.dataset for row in rows})
        if not datasets:
            return [f"expected {self}, but nothing was scored"]
        values = {(row.dataset, row.task, row.metric): row.value for row in rows}
        return [
            f"expected {self}, found {_shown(values, dataset, self.task, self.metric)} ({dataset})"
            for dataset in datasets
            if not self._holds(values.get((dataset, self.task, self.metric)))
        ]

    def _holds(self, value: float | None) -> bool:
        return value is not None and abs(value - self.value) <= self.tolerance


def parse_expected(entries: Sequence[Sequence[Any]]) -> list[Expectation]:
    """The entries of TEST.EXPECTED_RESULTS.

    Raises:
        ExpectationError: one that has another form.
    """
    parsed = []
    for entry in entries:
        fields = list(entry) if isinstance(entry, Sequence) and not isinstance(entry, str) else []
        texts, numbers = fields[:-2], fields[-2:]
        if (
            len(texts) not in (2, 3)
            or not all(isinstance(text, str) for text in texts)
            or not all(isinstance(number, int | float) for number in numbers)
        ):
            raise ExpectationError(
                f"TEST.EXPECTED_RESULTS: {entry!r} is not [task, metric, value, tolerance] or "
                "[dataset, task, metric, value, tolerance]"
            )
        dataset, task, metric = (None, *texts)[-3:]
        parsed.append(Expectation(dataset, str(task), str(metric), *map(float, numbers)))
    return parsed


def check_expected(entries: Sequence[Sequence[Any]], rows: Sequence[ResultRow]) -> None:
    """Compare results with the entries of TEST.EXPECTED_RESULTS.

    Raises:
        ExpectationError: some are missing or out of bounds, all of them in its details.
    """
    missed = [line for expected in parse_expected(entries) for line in expected.missed(rows)]
    if missed:
        raise ExpectationError(
            f"TEST.EXPECTED_RESULTS: {missed[0]}"
            + (f"; {len(missed)} results are missed" if len(missed) > 1 else ""),
            details=missed if len(missed) > 1 else (),
        )


def _shown(values: dict, *key: str) -> str:
    if key not in values:
        return "no such result"
    return "null (no class seen)" if values[key] is None else f"{values[key]:.4f}"

"""Whether the winner of a search stays the winner with other seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from d2_cityscapes.report.text_table import aligned
from d2_cityscapes.search.findings.importance import finished_trials

__all__ = [
    "ConfirmedTrial",
    "by_mean",
    "confirm_cells",
    "confirm_table",
    "confirm_verdict",
    "top_trials",
]

_SURE = 2.0  # standard errors between the first two


@dataclass(frozen=True)
class ConfirmedTrial:
    """A trial that was run again.

    Attributes:
        number: of the trial.
        value: that it had in the search.
        values: seed -> value of a run with that seed.
    """

    number: int
    value: float
    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values())))

    @property
    def sd(self) -> float:
        """Standard deviation over seeds; nan for a single one."""
        runs = list(self.values.values())
        return float(np.std(runs, ddof=1)) if len(runs) > 1 else math.nan


def top_trials(study: optuna.Study, k: int) -> list[FrozenTrial]:
    """The best ``k`` complete trials with different parameters, best first; fewer if there are."""
    maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
    ranked = sorted(
        finished_trials(study), key=lambda t: (-t.values[0] if maximize else t.values[0], t.number)
    )
    distinct: dict[str, FrozenTrial] = {}
    for trial in ranked:
        distinct.setdefault(json.dumps(trial.params, sort_keys=True), trial)
    return list(distinct.values())[:k]


def confirm_table(rows: Sequence[ConfirmedTrial], *, maximize: bool = True) -> str:
    """A line for each trial, best mean first, and what follows from them.

    Args:
        rows: the trials; seeds may differ between them, and those without any are left out.
        maximize: whether larger values are better.
    """
    head, cells = confirm_cells(rows, maximize=maximize)
    return "\n".join([*aligned([head, *cells]), confirm_verdict(rows, maximize=maximize)])


def confirm_cells(
    rows: Sequence[ConfirmedTrial], *, maximize: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Head and lines of `confirm_table` as texts."""
    seeds = sorted({seed for row in rows for seed in row.values})
    head = ["trial", "search", "mean", "sd", *(f"seed {seed}" for seed in seeds)]
    lines = [
        [
            str(row.number),
            f"{row.value:.5g}",
            f"{row.mean:.5g}",
            "-" if math.isnan(row.sd) else f"{row.sd:.2g}",
            *(f"{row.values[seed]:.5g}" if seed in row.values else "-" for seed in seeds),
        ]
        for row in by_mean(rows, maximize=maximize)
    ]
    return head, lines


def confirm_verdict(rows: Sequence[ConfirmedTrial], *, maximize: bool = True) -> str:
    """One sentence: who wins now, and by how much of the spread between seeds."""
    rows = by_mean(rows, maximize=maximize)
    if not rows:
        return "no trial was run again"
    first, *others = rows
    winner = (max if maximize else min)(rows, key=lambda row: row.value)
    who = (
        f"trial {first.number} stays the winner"
        if first.number == winner.number
        else f"trial {first.number} takes the place of trial {winner.number}"
    )
    if not others:
        return f"{who}: no other was run again"
    second = others[0]
    error = _standard_error(rows, first, second)
    if error is None:
        return f"{who}, but one seed each says nothing about the spread"
    ahead = abs(first.mean - second.mean)
    if ahead < _SURE * error:
        return (
            f"{who}, but is not told from trial {second.number}: {ahead:.2g} ahead, with a "
            f"standard error of {error:.2g}"
        )
    return f"{who}: {ahead:.2g} ahead of trial {second.number}, standard error {error:.2g}"


def by_mean(rows: Sequence[ConfirmedTrial], *, maximize: bool = True) -> list[ConfirmedTrial]:
    """The trials that were run again, the best mean first."""
    rows = [row for row in rows if row.values]
    return sorted(rows, key=lambda row: -row.mean if maximize else row.mean)


def _standard_error(
    rows: Sequence[ConfirmedTrial], first: ConfirmedTrial, second: ConfirmedTrial
) -> float | None:
    """Of the difference of two means, from the spread between seeds in all trials together."""
    repeated = [list(row.values.values()) for row in rows if len(row.values) > 1]
    if not repeated:
        return None
    squares = sum(float(np.var(runs)) * len(runs) for runs in repeated)
    variance = squares / sum(len(runs) - 1 for runs in repeated)
    return math.sqrt(variance * (1 / len(first.values) + 1 / len(second.values)))

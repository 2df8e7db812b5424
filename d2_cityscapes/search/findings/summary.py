"""The answer of a search in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from d2_cityscapes.report.text_table import aligned
from d2_cityscapes.search.findings.confirm_table import top_trials
from d2_cityscapes.search.findings.importance import (
    LEVEL,
    MIN_TRIALS,
    Importance,
    finished_trials,
    importances,
    p_text,
    why_no_importances,
)
from d2_cityscapes.search.trials.storage import SEARCH
from d2_cityscapes.search.trials.trial_queue import INTERRUPTED, REASON

__all__ = [
    "Luck",
    "importance_cells",
    "importance_verdict",
    "luck",
    "objective_label",
    "objective_name",
    "param_text",
    "state_counts",
    "state_text",
    "summary",
]

_TOP = 5


@dataclass(frozen=True)
class Luck:
    """How far the best trial is from the rest.

    Attributes:
        z: standard deviations between the best value and the mean of all of them.
        p: probability that the best of as many draws from one normal distribution is farther, in
            standard deviations of their own.
        count: number of complete trials.
    """

    z: float
    p: float
    count: int


def luck(study: optuna.Study) -> Luck | None:
    """Of the best complete trial; None for fewer than `MIN_TRIALS` of them, or equal values.

    By Grubbs (1950): mean and standard deviation are the draws' own, so that z has no normal tail
    but follows from Student's t with two degrees of freedom less.
    """
    values = np.array([trial.value for trial in finished_trials(study)])
    if len(values) < MIN_TRIALS or values.std() == 0:
        return None
    best = values.max() if study.direction == StudyDirection.MAXIMIZE else values.min()
    z = abs(float(best - values.mean())) / float(values.std(ddof=1))
    count = len(values)
    rest = max((count - 1) ** 2 - count * z**2, 1e-12)  # 0 where all others are equal
    t = z * (count * (count - 2) / rest) ** 0.5
    return Luck(z, float(-np.expm1(count * stats.t(count - 2).logcdf(t))), count)


def summary(study: optuna.Study, *, found: Sequence[Importance] | None = None) -> str:
    """The best trial, whether it is more than luck, and which parameters act.

    Args:
        study: in any state.
        found: its `importances`; None to compute them.
    """
    lines = [f"study {study.study_name}: {state_counts(study)}; {objective_name(study)}"]
    top = top_trials(study, _TOP)
    if not top:
        return "\n".join([*lines, "no trial is complete: there is no best one"])
    values = np.array([trial.value for trial in finished_trials(study)])
    lines.append(f"best: trial {top[0].number}, {top[0].value:.5g}")
    width = max(map(len, top[0].params), default=0)
    lines += [f"    {name:<{width}}  {param_text(top[0], name)}" for name in top[0].params]
    if top[1:]:
        following = ", ".join(f"{trial.value:.5g} (trial {trial.number})" for trial in top[1:])
        lines.append(f"next: {following}")
        spread = f", standard deviation {values.std(ddof=1):.2g}"
        lines.append(f"all: median {np.median(values):.5g}{spread}")
    lines.append(_luck_text(study))
    found = importances(study) if found is None else found
    lines.append(importance_verdict(study, found))
    if found:
        head, cells = importance_cells(found)
        lines += [f"    {line}" for line in aligned([head, *cells], words=2)]
    return "\n".join(lines)


def state_counts(study: optuna.Study) -> str:
    """ "42 complete, 1 failed": trials by `state_text`."""
    counts = Counter(map(state_text, study.get_trials(deepcopy=False)))
    order = ("complete", "pruned", "failed", "interrupted", "running", "waiting")
    return ", ".join(f"{counts[name]} {name}" for name in order if counts[name]) or "no trials"


def state_text(trial: FrozenTrial) -> str:
    """A trial's state; "interrupted" for one that was killed, which Optuna has as failed."""
    if trial.state != TrialState.FAIL:
        return trial.state.name.lower()
    killed = str(trial.user_attrs.get(REASON, "")).startswith(INTERRUPTED)
    return "interrupted" if killed else "failed"


def objective_name(study: optuna.Study) -> str:
    """ "maximize segm AP on cityscapes_shards_val_1"; the direction alone for other studies."""
    dataset = _objective(study).get("dataset")
    where = f" on {dataset}" if dataset else ""
    return f"{study.direction.name.lower()} {objective_label(study)}{where}"


def objective_label(study: optuna.Study) -> str:
    """ "segm AP"; "objective" for studies of others."""
    objective = _objective(study)
    return " ".join(objective[part] for part in ("task", "metric") if part in objective) or (
        "objective"
    )


def param_text(trial: FrozenTrial, name: str) -> str:
    """A parameter's value as text; "" where the trial has none."""
    value = trial.params.get(name, "")
    if isinstance(trial.distributions.get(name), CategoricalDistribution):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def importance_verdict(study: optuna.Study, found: Sequence[Importance]) -> str:
    """One sentence on what acts."""
    if not found:
        return f"importances: none, {why_no_importances(study)}"
    acting = [importance.name for importance in found if importance.acts]
    rest = len(found) - len(acting)
    hidden = _hidden_text(study, found)
    if not acting:
        if hidden:
            return f"importances: none of the {rest} parameters is shown to act, {hidden}"
        return (
            f"importances: none of the {rest} parameters acts: scores shuffled over the trials "
            "give fANOVA and trend as much"
        )
    others = f"; the other {rest} cannot be told from noise" if rest else ""
    if rest and hidden:
        others = f"; the other {rest} {'are' if rest > 1 else 'is'} not shown to act, {hidden}"
    return f"importances: {' and '.join(acting)} act{'s' * (len(acting) == 1)}{others}"


def _hidden_text(study: optuna.Study, found: Sequence[Importance]) -> str:
    """Why trials may not show what acts; "" where they are enough."""
    if all(one.enough for one in found):
        return ""
    pruned = len(study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))
    complete = len(finished_trials(study))
    return (
        f"but may: {complete} trials are complete, {pruned} were pruned early; more trials, or "
        "pruner: {name: none}, would show more"
    )


def importance_cells(found: Sequence[Importance]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a table of importances."""
    limit = f"chance, {1 - LEVEL:.0%}"
    head = ["parameter", "verdict"]
    for title in ("fANOVA", "trend", "PED-ANOVA"):
        head += [title, limit, "p"]
    lines = [
        [
            one.name,
            one.verdict,
            *(
                text
                for score in (one.fanova, one.trend, one.ped_anova)
                for text in (f"{score.value:.2g}", f"{score.threshold:.2g}", p_text(score.p_value))
            ),
        ]
        for one in found
    ]
    return head, lines


def _objective(study: optuna.Study) -> dict[str, Any]:
    return study.user_attrs.get(SEARCH, {}).get("objective", {})


def _luck_text(study: optuna.Study) -> str:
    found = luck(study)
    if found is None:
        return "luck: too few different values to say how far the best is above the rest"
    return (
        f"luck: the best is {found.z:.2f} standard deviations from the mean of {found.count}; the "
        f"best of {found.count} equal trials with normal noise would be farther with P = "
        f"{p_text(found.p)}"
    )

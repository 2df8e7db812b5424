"""The best trials with other seeds, on numbers worked by hand."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from d2_cityscapes.search.findings.confirm_table import (
    ConfirmedTrial,
    confirm_table,
    confirm_verdict,
    top_trials,
)


def study_of(*trials: tuple[float, float], direction: str = "maximize") -> optuna.Study:
    """Trials (x, value)."""
    study = optuna.create_study(direction=direction)
    space = {"x": FloatDistribution(0, 10)}
    for x, value in trials:
        study.add_trial(create_trial(params={"x": x}, distributions=space, value=value))
    return study


@pytest.mark.parametrize(("direction", "numbers"), [("maximize", [3, 1, 4]), ("minimize", [0, 4])])
def test_the_best_trials_are_distinct(direction: str, numbers: list[int]) -> None:
    """Trial 2 has the parameters of trial 3, and 5 those of 4."""
    trials = [(1, 0.0), (2, 8.0), (3, 6.0), (3, 9.0), (5, 5.0), (5, 5.0)]
    found = top_trials(study_of(*trials, direction=direction), len(numbers))
    assert [trial.number for trial in found] == numbers


def test_the_best_trials_are_complete_and_as_many_as_there_are() -> None:
    study = study_of((1, 2.0), (2, math.inf))
    study.add_trial(create_trial(state=TrialState.FAIL))
    assert [trial.number for trial in top_trials(study, 5)] == [0]
    assert top_trials(optuna.create_study(), 3) == []


def test_mean_and_standard_deviation_over_seeds() -> None:
    row = ConfirmedTrial(7, 30.0, {1: 20.0, 2: 24.0})
    assert row.mean == 22
    assert row.sd == pytest.approx(math.sqrt(8))
    assert math.isnan(ConfirmedTrial(7, 30.0, {1: 20.0}).sd)


def test_table_puts_the_best_mean_first() -> None:
    rows = [ConfirmedTrial(7, 30.0, {1: 20.0, 2: 24.0}), ConfirmedTrial(9, 29.0, {1: 26.0})]
    head, first, second, verdict = confirm_table(rows).splitlines()
    assert head.split() == ["trial", "search", "mean", "sd", "seed", "1", "seed", "2"]
    assert first.split() == ["9", "29", "26", "-", "26", "-"]
    assert second.split() == ["7", "30", "22", "2.8", "20", "24"]
    assert verdict.startswith("trial 9 takes the place of trial 7")
    assert confirm_table(rows, maximize=False).splitlines()[1].split()[0] == "7"


def test_a_clear_winner_and_one_within_the_noise() -> None:
    """Pooled variance 2 over two seeds each: the standard error of a difference is sqrt(2)."""
    far = [ConfirmedTrial(1, 30.0, {1: 19.0, 2: 21.0}), ConfirmedTrial(2, 29.0, {1: 9.0, 2: 11.0})]
    assert confirm_verdict(far) == (
        "trial 1 stays the winner: 10 ahead of trial 2, standard error 1.4"
    )
    near = [far[0], ConfirmedTrial(2, 29.0, {1: 18.0, 2: 20.0})]
    assert confirm_verdict(near) == (
        "trial 1 stays the winner, but is not told from trial 2: 1 ahead, with a standard error of "
        "1.4"
    )


def test_one_seed_and_one_trial_prove_nothing() -> None:
    rows = [ConfirmedTrial(1, 3.0, {1: 2.0}), ConfirmedTrial(2, 2.0, {1: 1.0})]
    assert "says nothing about the spread" in confirm_verdict(rows)
    assert confirm_verdict(rows[:1]) == "trial 1 stays the winner: no other was run again"
    assert confirm_verdict([ConfirmedTrial(1, 3.0, {})]) == "no trial was run again"

"""Which parameters of a search act, and which cannot be told from noise.

Importances add up to something for any scores, random ones included: on few trials a parameter that
reaches nothing gets a third of the variance. So each is compared with what the same evaluator says
once the scores are shuffled over the trials (Altmann et al. 2010, "Permutation importance: a
corrected feature importance measure"), and with the best that any parameter has there, for the more
parameters, the better the luckiest one looks (Westfall and Young 1993, "Resampling-based multiple
testing").
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy import stats

__all__ = [
    "LEVEL",
    "MIN_TRIALS",
    "Importance",
    "Score",
    "finished_trials",
    "importances",
    "p_text",
    "why_no_importances",
]

LEVEL = 0.05  # probability that chance alone makes any of the parameters act
MIN_TRIALS = 10  # complete and pruned ones, below which no importance means anything
_RANDOM = "random numbers"  # see `_copy`
_TREES = 16  # of fANOVA: enough beside a null of as many, and time grows with them


@dataclass(frozen=True)
class Score:
    """What one evaluator says about one parameter.

    Attributes:
        value: its importance.
        null_mean: mean of the importances on permuted scores.
        threshold: what any parameter exceeds, in its own measure, on fewer than `LEVEL` of the
            permuted scores.
        p_value: part of the permuted scores on which any parameter looks as good as this one: below
            `LEVEL` above the threshold.
    """

    value: float
    null_mean: float
    threshold: float
    p_value: float


@dataclass(frozen=True)
class Importance:
    """One parameter.

    Attributes:
        name: of the parameter.
        fanova: part of the variance of the scores' ranks that it explains on its own, 0 to 1
            (Hutter et al. 2014). Ranks, for a diverged trial would be all of the variance.
        ped_anova: how far its distribution in the best tenth of the trials is from that in all
            (Watanabe et al. 2023).
    """

    name: str
    fanova: Score
    ped_anova: Score

    @property
    def acts(self) -> bool:
        """Whether fANOVA finds more than noise.

        PED-ANOVA does not vote: TPE gathers trials around good ones, which shuffled scores do not
        imitate, so that it passes its threshold too often. In the paper's search it does so for a
        threshold that never reached the model.
        """
        return self.fanova.p_value < LEVEL


def importances(study: optuna.Study, *, seed: int = 0, permutations: int = 99) -> list[Importance]:
    """Importances of the parameters beside those on permuted scores, by fANOVA's p-value.

    A parameter that acts may still be hidden by a much stronger one, or by too few trials.

    Args:
        study: in any state; its complete trials count, and the pruned ones as `_judged` has them.
        seed: of the forests and the permutations; any whole number.
        permutations: how often the scores are shuffled; with fewer than 20 nothing acts.

    Returns:
        One for each parameter that all these trials have; none where `why_no_importances`.
    """
    if permutations < 2:
        raise ValueError(f"permutations {permutations}: use 2 or more")
    if why_no_importances(study):
        return []
    judged = _judged(study)
    trials = [trial for trial, _ in judged]
    ranks = stats.rankdata([place for _, place in judged])
    names = [name for name in trials[0].params if all(name in trial.params for trial in trials)]
    seed %= 2**32  # what both take
    generator = np.random.default_rng(seed)
    copy = _copy(trials, names, generator)
    shuffled = [generator.permutation(ranks) for _ in range(permutations)]
    evaluators: tuple[BaseImportanceEvaluator, ...] = (
        FanovaImportanceEvaluator(n_trees=_TREES, seed=seed),
        PedAnovaImportanceEvaluator(),
    )
    scores = []
    for evaluator in evaluators:
        observed, *null = (_evaluate(evaluator, copy, names, r) for r in (ranks, *shuffled))
        scores.append(_compare(observed, np.stack(null)))
    found = [Importance(*parts) for parts in zip(names, *scores, strict=True)]
    return sorted(found, key=lambda one: (one.fanova.p_value, -one.fanova.value))


def why_no_importances(study: optuna.Study) -> str | None:
    """The reason for which `importances` finds none, if so."""
    judged = _judged(study)
    if len(judged) < MIN_TRIALS:
        return f"{len(judged)} complete and pruned trials are too few, {MIN_TRIALS} are needed"
    if len({place for _, place in judged}) == 1:
        return f"all {len(judged)} trials are equally good"
    return None


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials whose values are finite, in the order of their numbers."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in trials if trial.value is not None and np.isfinite(trial.value)]


def p_text(value: float) -> str:
    """A probability as text: "0.35", "0.012" or "<.001"."""
    return "<.001" if value < 0.001 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _judged(study: optuna.Study) -> list[tuple[FrozenTrial, float]]:
    """Trials with their places: 1 is the best of the complete ones.

    A pruned trial gets the place that its last report has among the reports of complete trials at
    that step. Without the pruned ones, which are the bad ones, what acts would hardly show.
    """
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    complete = finished_trials(study)
    places = stats.rankdata([sign * trial.values[0] for trial in complete])
    judged = [(trial, float(place)) for trial, place in zip(complete, places, strict=True)]
    for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)):
        step = max(trial.intermediate_values, default=-1)
        reports = [
            sign * other.intermediate_values[step]
            for other in complete
            if step in other.intermediate_values
        ]
        if reports:
            # a last report that is not a number is worse than all
            worse = np.mean(np.array(reports) >= sign * trial.intermediate_values[step])
            judged.append((trial, (1 - float(worse)) * len(complete) + 0.5))
    return judged


def _copy(
    trials: Sequence[FrozenTrial], names: Sequence[str], generator: np.random.Generator
) -> optuna.Study:
    """A study in memory that has these trials, all complete.

    Where only one parameter varies, random numbers become another one: a forest that can split on
    nothing else gives it all of the variance, whatever the scores.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a new study is no news here
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    distributions = {name: trials[0].distributions[name] for name in names}
    alone = sum(not distribution.single() for distribution in distributions.values()) < 2
    for trial in trials:
        params = {name: trial.params[name] for name in names}
        if alone:
            distributions[_RANDOM] = FloatDistribution(0.0, 1.0)
            params[_RANDOM] = float(generator.random())
        study.add_trial(create_trial(params=params, distributions=distributions, value=0.0))
    return study


def _evaluate(
    evaluator: BaseImportanceEvaluator,
    study: optuna.Study,
    names: Sequence[str],
    values: np.ndarray,
) -> np.ndarray:
    """(K,) importances of K parameters, as if the trials had these values, lower ones better."""
    with warnings.catch_warnings():
        # that PED-ANOVA looks for low values, and that the sum need not be 1
        warnings.simplefilter("ignore")
        found = get_param_importances(
            study,
            evaluator=evaluator,
            params=list(study.trials[0].params),
            target=lambda trial: float(values[trial.number]),
            normalize=False,
        )
    return np.array([found[name] for name in names])


def _compare(observed: np.ndarray, null: np.ndarray) -> list[Score]:
    """Scores from (K,) importances and (R, K) on permuted scores.

    A gamma distribution with the mean and variance of a parameter's R is the measure in which
    parameters can be compared: how small a tail is behind a value. That no importance is exactly
    gamma distributed does no harm, as the smallest of the K tails is looked up among its own R.
    """
    mean, variance = null.mean(0), null.var(0, ddof=1)
    varies = variance > 0  # a parameter with a single value never does
    center, spread = np.where(varies, mean, 1.0), np.where(varies, variance, 1.0)
    tails = stats.gamma(center**2 / spread, scale=spread / center)
    tail = np.where(varies, tails.sf(observed), 1.0)
    luckiest = np.sort(np.where(varies, tails.sf(null), 1.0).min(1))
    permutations = len(null)
    p_values = (1 + np.searchsorted(luckiest, tail, side="right")) / (permutations + 1)
    allowed = max(int(np.ceil(LEVEL * (permutations + 1))) - 2, 0)  # as lucky ones for p < LEVEL
    thresholds = np.where(varies, tails.isf(luckiest[allowed]), mean)
    return [
        Score(float(value), float(average), float(threshold), float(p))
        for value, average, threshold, p in zip(
            observed, mean, thresholds, np.where(varies, p_values, 1.0), strict=True
        )
    ]

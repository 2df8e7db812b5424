"""Which parameters of a search act, and which cannot be told from noise.

Importances add up to something for any scores, random ones included: on few trials a parameter that
reaches nothing gets a third of the variance. So each is compared with what the same evaluator says
once the scores are shuffled over the trials (Altmann et al. 2010, "Permutation importance: a
corrected feature importance measure"), and with the best that any parameter has there, for the more
parameters, the better the luckiest one looks (Westfall and Young 1993, "Resampling-based multiple
testing").

Two evaluators decide, and share that allowance: fANOVA, which sees any shape, and a rank
correlation, which sees trends only, but those in far fewer or pruned trials.

Shape letters: T trials, K parameters, R permutations.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
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
        trend: part of that variance that goes up or down with it: the square of Spearman's rank
            correlation; of a category, the part that its means explain. 0 to 1.
        ped_anova: how far its distribution in the best tenth of the trials is from that in all
            (Watanabe et al. 2023).
        enough: whether most trials were complete, and `MIN_TRIALS` of them: pruning hides much of
            what acts.
    """

    name: str
    fanova: Score
    trend: Score
    ped_anova: Score
    enough: bool = True

    @property
    def p_value(self) -> float:
        """Part of the permuted scores on which fANOVA or trend of any parameter looks as good."""
        return min(self.fanova.p_value, self.trend.p_value)

    @property
    def acts(self) -> bool:
        """Whether fANOVA or trend find more than noise.

        PED-ANOVA does not vote: TPE gathers trials around good ones, which shuffled scores do not
        imitate, so that it passes its threshold too often. In the paper's search it does so for a
        threshold that never reached the model.
        """
        return self.p_value < LEVEL

    @property
    def verdict(self) -> str:
        """ "acts", "noise", or "not shown" where trials that could show it are not `enough`."""
        return "acts" if self.acts else "noise" if self.enough else "not shown"


def importances(study: optuna.Study, *, seed: int = 0, permutations: int = 99) -> list[Importance]:
    """Importances of the parameters beside those on permuted scores, by p-value.

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
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    enough = complete >= max(MIN_TRIALS, len(trials) / 2)
    names = _common_names(trials)
    seed %= 2**32  # what both take
    generator = np.random.default_rng(seed)
    copy = _copy(trials, names, generator)
    rows = np.stack([ranks, *(generator.permutation(ranks) for _ in range(permutations))])
    evaluators: tuple[BaseImportanceEvaluator, ...] = (
        FanovaImportanceEvaluator(n_trees=_TREES, seed=seed),
        PedAnovaImportanceEvaluator(),
    )
    fanova, ped_anova = (
        np.stack([_evaluate(evaluator, copy, names, row) for row in rows])
        for evaluator in evaluators
    )
    trends = np.stack([_trends(trials, name, rows) for name in names], axis=1)
    deciding = np.hstack([fanova, trends])  # one allowance for chance over both
    scores = _compare(deciding[0], deciding[1:])
    parts = zip(
        names,
        scores[: len(names)],
        scores[len(names) :],
        _compare(ped_anova[0], ped_anova[1:]),
        strict=True,
    )
    found = [Importance(*one, enough) for one in parts]
    return sorted(found, key=lambda one: (one.p_value, -one.fanova.value))


def why_no_importances(study: optuna.Study) -> str | None:
    """The reason for which `importances` finds none, if so."""
    judged = _judged(study)
    if len(judged) < MIN_TRIALS:
        return f"{len(judged)} complete and pruned trials are too few, {MIN_TRIALS} are needed"
    if len({place for _, place in judged}) == 1:
        return f"all {len(judged)} trials are equally good"
    if not _common_names([trial for trial, _ in judged]):
        return f"no parameter is common to all {len(judged)} trials"
    return None


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials whose values are finite, in the order of their numbers."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in trials if trial.value is not None and np.isfinite(trial.value)]


def p_text(value: float) -> str:
    """A probability as text: "0.35", "0.012" or "<.001"."""
    return "<.001" if value < 0.001 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _common_names(trials: Sequence[FrozenTrial]) -> list[str]:
    """Of the parameters that all trials have."""
    return [name for name in trials[0].params if all(name in trial.params for trial in trials)]


def _judged(study: optuna.Study) -> list[tuple[FrozenTrial, float]]:
    """Trials with their places: the better, the lower.

    Complete trials come by their values. A pruned one is compared with every other trial at the
    last report that both have, so that it is held against those of its own age, pruned ones
    included (Gehan 1965, "A generalized Wilcoxon test for comparing arbitrarily singly-censored
    samples"). Without the pruned ones, which are the bad ones, what acts would hardly show.
    """
    trials = finished_trials(study)
    pruned = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    trials += [trial for trial in pruned if trial.intermediate_values]
    costs, last = _costs(study, trials)
    common = np.minimum.outer(last, last)  # (T, T) columns
    mine = costs[np.arange(len(trials))[:, None], common]
    known = ~(np.isnan(mine) | np.isnan(mine.T))
    places = ((mine > mine.T).astype(int) - (mine < mine.T)).sum(1)
    compared = known.sum(1) > 1  # with another one than itself
    return [
        (trial, float(place))
        for trial, place, counts in zip(trials, places, compared, strict=True)
        if counts or trial.state == TrialState.COMPLETE
    ]


def _costs(study: optuna.Study, trials: Sequence[FrozenTrial]) -> tuple[np.ndarray, np.ndarray]:
    """Reports and values, the better the lower, and where each trial ended.

    Returns:
        (T, S + 1), a column for each of S steps and one for the values; NaN where there is none,
        infinite for a report that is not a number. (T,) the last column that a trial has.
    """
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    steps = sorted({step for trial in trials for step in trial.intermediate_values})
    column = {step: index for index, step in enumerate(steps)}
    costs = np.full((len(trials), len(steps) + 1), np.nan)
    last = np.full(len(trials), len(steps))
    for row, trial in enumerate(trials):
        for step, report in trial.intermediate_values.items():
            costs[row, column[step]] = np.inf if np.isnan(report) else sign * report
        if trial.state == TrialState.COMPLETE:
            costs[row, -1] = sign * trial.values[0]
        else:
            last[row] = column[max(trial.intermediate_values)]
    return costs, last


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


def _trends(trials: Sequence[FrozenTrial], name: str, rows: np.ndarray) -> np.ndarray:
    """Part of the variance of ranks that a line over a parameter's ranks explains, or its choices.

    Args:
        trials: T of them.
        name: of the parameter.
        rows: (R, T) ranks of the scores.

    Returns:
        (R,) from 0 to 1.
    """
    values = [trial.params[name] for trial in trials]
    distribution = trials[0].distributions[name]
    if isinstance(distribution, CategoricalDistribution):
        columns = np.array(
            [[value == choice for choice in distribution.choices] for value in values]
        )
    else:
        columns = stats.rankdata(values)[:, None]
    centered = columns - columns.mean(0)
    basis, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * len(trials)]
    rows = rows - rows.mean(1, keepdims=True)
    return np.square(rows @ basis).sum(1) / np.square(rows).sum(1)


def _compare(observed: np.ndarray, null: np.ndarray) -> list[Score]:
    """Scores from (K,) importances and (R, K) on permuted scores.

    A gamma distribution with the mean and variance of an importance's R is the measure in which
    importances, of whatever evaluator, can be compared: how small a tail is behind a value. That
    none is exactly gamma distributed does no harm, as the smallest of the K tails is looked up
    among its own R.
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

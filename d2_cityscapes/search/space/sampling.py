"""Which values a trial gets: Optuna's samplers, kept within the constraints."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from d2_cityscapes.search.space.space import Space

__all__ = ["FeasibleSampler"]

_TRIES = 50  # proposals of TPE before a feasible one is drawn at random


class FeasibleSampler(BaseSampler):
    """TPE or random search over a space with constraints.

    A trial's random numbers follow from the seed and its number: so a search that is continued does
    not propose its first values again, and no worker needs to know what others drew.
    TPE is multivariate, and counts trials that still run as bad ones, so that workers keep apart.
    """

    def __init__(self, space: Space, *, name: str, startup_trials: int, seed: int) -> None:
        """
        Args:
            space: of the study.
            name: "tpe" or "random".
            startup_trials: finished trials before TPE proposes; random until then.
            seed: any whole number.
        """
        self._space = space
        self._name = name
        self._startup_trials = startup_trials
        self._seed = seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if trial.params:  # one that continues another, with its values
            return {}
        sequence = np.random.SeedSequence([self._seed % 2**32, trial.number])
        seed = int(sequence.generate_state(1)[0])
        if self._name == "tpe":
            tpe = self._tpe(seed)
            for _ in range(_TRIES):
                params = tpe.sample_relative(study, trial, search_space)
                if not params:  # it has nothing to learn from yet
                    break
                if self._space.is_feasible(params):
                    return params
        return self._space.sample(RandomSampler(seed))

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        raise AssertionError(f"{param_name} is not in the space")  # relative sampling has them all

    def _tpe(self, seed: int) -> TPESampler:
        with warnings.catch_warnings():  # Optuna 4 calls both options experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(
                seed=seed,
                n_startup_trials=self._startup_trials,
                multivariate=True,
                constant_liar=True,
            )

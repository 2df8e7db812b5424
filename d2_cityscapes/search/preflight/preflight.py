"""Before the first trial: every searched value must reach what trains, and act there.

A process of its own builds the trainer for values at the ends of every parameter, compares the
builds, and asks of each which keys have no effect on it: a value may well be stored in a model that
never uses it. The study and the output folder are not touched.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.utils.env import seed_all_rng
from optuna.distributions import CategoricalDistribution
from optuna.samplers import RandomSampler

from d2_cityscapes.config import value_of
from d2_cityscapes.engine.checks.values import check_values
from d2_cityscapes.engine.key_effects import changed_keys, why_without_effect
from d2_cityscapes.engine.setup import check_start, check_weights_file, load_config
from d2_cityscapes.engine.trainer import build_run, setup
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.anchors.generator import resolve_anchors
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.preflight.applied import check_applied
from d2_cityscapes.search.preflight.reach import differences, fingerprint
from d2_cityscapes.search.space.plan import SearchPlan
from d2_cityscapes.search.space.plan_file import read_plan
from d2_cityscapes.search.space.space import Parameter, Space
from d2_cityscapes.search.trials.process import Outcome, Report, TrialProcess, serve
from d2_cityscapes.search.trials.workers import Process, Workers

__all__ = ["check_reach", "run_preflight", "start_preflight"]

_WORK = "work.json"
_SHOWN = 2  # places named for each parameter
_TRIES = 100  # samples, until the constraints let a parameter vary in one

# Starts the process that builds the trainers: (folder, environment) -> process.
start_preflight = partial(
    TrialProcess, [sys.executable, "-m", "d2_cityscapes.search.preflight.preflight"]
)


def check_reach(
    plan: SearchPlan,
    start: Callable[[Path, Mapping[str, str]], Process] = start_preflight,
    *,
    allow_unused: bool = False,
) -> dict[str, list[str]]:
    """Build what a trial builds, at the ends of every parameter.

    Args:
        plan: of the search.
        start: starts the process.
        allow_unused: whether keys that do not vary may have no effect.

    Returns:
        Name of a parameter -> where it acts, a few paths such as
        "model.proposal_generator.anchor_matcher.thresholds[1]".

    Raises:
        SearchError: a parameter that reaches nothing, or acts in none of the builds; another key
            that differs from its default and does not; a value that no model can be built with.
    """
    outcomes: list[Outcome | None] = []
    with tempfile.TemporaryDirectory(prefix="d2_cityscapes_search_") as name:
        folder = Path(name)
        work = {"source": str(plan.source), "opts": plan.opts, "seed": plan.seed}
        (folder / _WORK).write_text(json.dumps(work | {"allow_unused": allow_unused}))
        pool = Workers(start, count=1)
        pool.run(lambda env: outcomes.append(pool.run_process(folder, env, lambda *_: False)))
    outcome = outcomes[0]
    if outcome is None or outcome.state != "complete":
        raise SearchError(f"{plan.source}: {outcome.reason if outcome else 'interrupted'}")
    return {name: list(paths) for name, paths in outcome.results.items()}


@dataclass(frozen=True)
class _Pair:
    """Two samples that differ in one parameter.

    Attributes:
        parameter: that one.
        base, other: params, see `Space`.
    """

    parameter: Parameter
    base: Mapping[str, Any]
    other: Mapping[str, Any]

    def on(self, params: Mapping[str, Any]) -> _Pair:
        """The same two values beside others."""
        name = self.parameter.name
        one, two = ({**params, name: p[name]} for p in (self.base, self.other))
        return _Pair(self.parameter, one, two)


def _pairs(space: Space, first: Mapping[str, Any], sampler: RandomSampler) -> list[_Pair]:
    """For each parameter other values of it beside the same others, those of a sample if possible.

    Every choice of a categorical parameter occurs, and of a range the end that is farther away.
    """
    pairs = []
    for parameter in space.parameters:
        base, others = _partners(space, parameter, first, sampler)
        pairs += [_Pair(parameter, base, base | {parameter.name: other}) for other in others]
    return pairs


def _partners(
    space: Space, parameter: Parameter, first: Mapping[str, Any], sampler: RandomSampler
) -> tuple[dict[str, Any], list[Any]]:
    """A sample, ``first`` if possible, and other values that the parameter can take in it."""
    base, name = dict(first), parameter.name
    for _ in range(_TRIES):
        candidates = [*parameter.extremes(), space.sample(sampler)[name]]
        others = [
            value
            for value in candidates
            if value != base[name] and space.is_feasible(base | {name: value})
        ]
        if others:
            if isinstance(parameter.distribution, CategoricalDistribution):
                return base, list(dict.fromkeys(others))
            return base, [max(others, key=lambda value: abs(value - base[name]))]
        base = space.sample(sampler)
    raise SearchError(f"space: the constraints leave {name} no room to vary")


def run_preflight(folder: Path, report: Report) -> tuple[float, Mapping[str, list[str]]]:
    """The process: build what a folder asks for and compare.

    Returns:
        0.0, and what `check_reach` returns.

    Raises:
        D2CityscapesError: see there.
    """
    work = json.loads((folder / _WORK).read_text())
    allow_unused = work.pop("allow_unused")
    plan = read_plan(**work)
    sampler = RandomSampler(0)
    first = plan.space.sample(sampler)
    builds = _Builds(plan, folder)
    config = str(builds.write(first))
    setup(argparse.Namespace(config_file=config, opts=[], eval_only=False))  # checks data as well
    pairs = _pairs(plan.space, first, sampler)
    acts: dict[str, list[str]] = {}
    silent = []
    for pair in pairs:
        paths = builds.paths(pair)
        if paths:
            acts.setdefault(pair.parameter.name, paths)
        else:
            silent.append(pair)
    for pair in silent:  # it may act beside other values of another parameter
        acts.setdefault(pair.parameter.name, builds.paths_elsewhere(pair))
    unused = builds.unused()
    if unused and not allow_unused:
        raise SearchError.of_many(
            unused, "set without effect in any trial; leave out, or --allow-unused"
        )
    return 0.0, {parameter.name: acts[parameter.name] for parameter in plan.space.parameters}


class _Build(NamedTuple):
    """What was built with some params.

    Attributes:
        params: see `Space`.
        parts: see `fingerprint`.
        idle: key -> why it has no effect; of those that vary and those that are not the default.
        values: key -> value, of the same.
    """

    params: Mapping[str, Any]
    parts: Mapping[str, str]
    idle: Mapping[str, str]
    values: Mapping[str, Any]


class _Builds:
    """Trainers of a plan, each built once, with what was found in them."""

    def __init__(self, plan: SearchPlan, folder: Path) -> None:
        """
        Args:
            plan: of the search.
            folder: for configs.
        """
        self._plan = plan
        self._folder = folder
        self._keys = list(dict.fromkeys(parameter.key for parameter in plan.space.parameters))
        self._done: dict[str, _Build] = {}
        self._noise: set[str] | None = None

    def write(self, params: Mapping[str, Any]) -> Path:
        """The config of a trial with these params, as a file."""
        values = self._plan.space.values(params)
        cfg = self._plan.config(values, output_dir=self._folder / "output").clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        path = self._folder / "config.yaml"
        path.write_text(cfg.dump())
        return path

    def paths(self, pair: _Pair) -> list[str]:
        """Where the parameter of a pair acts, a few paths; [] for nowhere.

        Nor does it where both builds have no use for it.
        """
        one, other = self._build(pair.base), self._build(pair.other, pair.parameter)
        if pair.parameter.key in one.idle and pair.parameter.key in other.idle:
            return []
        if self._noise is None:
            # What is not the same in two builds of one config, such as times, says nothing.
            self._noise = set(differences(one.parts, self._new(pair.base, None).parts))
        changed = differences(one.parts, other.parts)
        return [path for path in changed if path not in self._noise][:_SHOWN]

    def paths_elsewhere(self, pair: _Pair) -> list[str]:
        """The same beside values of the other parameters that were built and have a use for it.

        Raises:
            SearchError: it acts nowhere.
        """
        key, name = pair.parameter.key, pair.parameter.name
        for build in [build for build in self._done.values() if key not in build.idle]:
            there = pair.on(build.params)
            if all(map(self._plan.space.is_feasible, (there.base, there.other))):
                paths = self.paths(there)
                if paths:
                    return paths
        before, now = (self._plan.space.values(p)[name] for p in (pair.base, pair.other))
        why = self._build(pair.base).idle.get(key)
        raise SearchError(
            f"{name} reaches nothing: with {before} and with {now} the same model would be "
            f"trained in the same way{f': it {why}' if why else ''}"
        )

    def unused(self) -> list[str]:
        """Keys that do not vary, are not the default, and act in none of the builds, with why."""
        first, *rest = self._done.values()
        return [
            f"{key} {first.values[key]!r} {why}"
            for key, why in first.idle.items()
            if key not in self._keys and all(key in build.idle for build in rest)
        ]

    def _build(self, params: Mapping[str, Any], varied: Parameter | None = None) -> _Build:
        known = json.dumps(params, sort_keys=True)
        if known not in self._done:
            self._done[known] = self._new(params, varied)
        return self._done[known]

    def _new(self, params: Mapping[str, Any], varied: Parameter | None) -> _Build:
        """Build it; ``varied`` is what an error names, instead of all parameters."""
        values = self._plan.space.values(params)
        try:
            cfg = resolve_anchors(load_config(self.write(params)))
            check_weights_file(cfg)
            check_start(cfg)
            check_values(cfg)
            seed_all_rng(0)
            trainer, reads = build_run(cfg)
            check_applied(trainer.cfg, trainer.model, trainer.optimizer, values)
            parts = fingerprint(trainer)
        except (D2CityscapesError, AssertionError, ValueError, TypeError) as error:
            named = {varied.name: values[varied.name]} if varied else values
            shown = ", ".join(f"{name} {value}" for name, value in named.items())
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise SearchError(f"no model can be built with {shown}: {line}") from error
        keys = list(dict.fromkeys([*self._keys, *changed_keys(trainer.cfg)]))
        idle = why_without_effect(trainer.cfg, reads, keys)
        return _Build(params, parts, idle, {key: value_of(trainer.cfg, key) for key in keys})


if __name__ == "__main__":
    serve(run_preflight)

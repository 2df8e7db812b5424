"""Before the first trial: every searched value must reach what trains.

A process of its own builds the trainer for values at the ends of every parameter and compares the
builds. The study and the output folder are not touched.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.utils.env import seed_all_rng
from optuna.distributions import CategoricalDistribution
from optuna.samplers import RandomSampler

from d2_cityscapes.engine.checks.values import check_values
from d2_cityscapes.engine.setup import check_start, check_weights_file, load_config
from d2_cityscapes.engine.trainer import Trainer, setup
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.anchors.generator import resolve_anchors
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.preflight.applied import check_applied
from d2_cityscapes.search.preflight.reach import differences, fingerprint
from d2_cityscapes.search.space.plan import SearchPlan
from d2_cityscapes.search.space.space import Parameter, Space
from d2_cityscapes.search.trials.process import Outcome, Report, TrialProcess, serve
from d2_cityscapes.search.trials.workers import Process, Workers

__all__ = ["check_reach", "run_preflight", "start_preflight"]

_CASES = "cases.json"
_SHOWN = 2  # places named for each parameter
_TRIES = 100  # samples, until the constraints let a parameter vary in one

# Starts the process that builds the trainers: (folder, environment) -> process.
start_preflight = partial(
    TrialProcess, [sys.executable, "-m", "d2_cityscapes.search.preflight.preflight"]
)


def check_reach(
    plan: SearchPlan, start: Callable[[Path, Mapping[str, str]], Process] = start_preflight
) -> dict[str, list[str]]:
    """Build what a trial builds, at the ends of every parameter.

    Returns:
        Name of a parameter -> where it acts, a few paths such as
        "model.proposal_generator.anchor_matcher.thresholds[1]".

    Raises:
        SearchError: a parameter that reaches nothing, or a value that no model can be built with.
    """
    cases = _cases(plan.space)
    outcomes: list[Outcome | None] = []
    with tempfile.TemporaryDirectory(prefix="d2_cityscapes_search_") as name:
        folder = Path(name)
        for index, case in enumerate(cases):
            cfg = plan.config(case.values, output_dir=folder / "output").clone()
            cfg.defrost()
            cfg.DATALOADER.NUM_WORKERS = 0
            (folder / f"{index}.yaml").write_text(cfg.dump())
        (folder / _CASES).write_text(json.dumps([asdict(case) for case in cases]))
        pool = Workers(start, count=1)
        pool.run(lambda env: outcomes.append(pool.run_process(folder, env, lambda *_: False)))
    outcome = outcomes[0]
    if outcome is None or outcome.state != "complete":
        raise SearchError(f"{plan.source}: {outcome.reason if outcome else 'interrupted'}")
    return {name: list(paths) for name, paths in outcome.results.items()}


@dataclass(frozen=True)
class _Case:
    """Something to build.

    Attributes:
        values: for the config.
        name: of the parameter that is not as in the case ``base``; "" for a case to compare with.
        base: index of a case.
    """

    values: Mapping[str, Any]
    name: str = ""
    base: int = 0


def _cases(space: Space) -> list[_Case]:
    """A sample, and for each parameter other values of it beside the same others.

    Every choice of a categorical parameter occurs, and of a range the end that is farther away.
    """
    sampler = RandomSampler(0)
    first = space.sample(sampler)
    cases = [_Case(space.values(first))]
    for parameter in space.parameters:
        base, others = _partners(space, parameter, first, sampler)
        index = 0
        if base != first:
            index = len(cases)
            cases.append(_Case(space.values(base), base=index))
        cases += [
            _Case(space.values(base | {parameter.name: other}), parameter.name, index)
            for other in others
        ]
    return cases


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
    """The process: build all cases of a folder and compare.

    Returns:
        0.0, and what `check_reach` returns.

    Raises:
        D2CityscapesError: see there.
    """
    cases = [_Case(**fields) for fields in json.loads((folder / _CASES).read_text())]
    first = str(folder / "0.yaml")
    setup(argparse.Namespace(config_file=first, opts=[], eval_only=False))  # checks data as well
    prints: dict[int, dict[str, str]] = {0: _build(folder / "0.yaml", cases[0])}
    # What is not the same in two builds of one config, such as times, says nothing.
    noise = set(differences(prints[0], _build(folder / "0.yaml", cases[0])))
    acts: dict[str, list[str]] = {}
    for index, case in enumerate(cases[1:], start=1):
        built = _build(folder / f"{index}.yaml", case)
        if not case.name:
            prints[index] = built
            continue
        paths = [path for path in differences(prints[case.base], built) if path not in noise]
        if not paths:
            before, now = cases[case.base].values[case.name], case.values[case.name]
            raise SearchError(
                f"{case.name} reaches nothing: with {before} and with {now} the same model would "
                "be trained in the same way"
            )
        acts.setdefault(case.name, paths[:_SHOWN])
    return 0.0, acts


def _build(config: Path, case: _Case) -> dict[str, str]:
    try:
        cfg = resolve_anchors(load_config(config))
        check_weights_file(cfg)
        check_start(cfg)
        check_values(cfg)
        seed_all_rng(0)
        trainer = Trainer(cfg)
        check_applied(cfg, trainer.model, trainer.optimizer, case.values)
        return fingerprint(trainer)
    except (D2CityscapesError, AssertionError, ValueError, TypeError) as error:
        values = {case.name: case.values[case.name]} if case.name else case.values
        shown = ", ".join(f"{name} {value}" for name, value in values.items())
        line = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SearchError(f"no model can be built with {shown}: {line}") from error


if __name__ == "__main__":
    serve(run_preflight)

"""Search files: read, and checked as far as that needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from optuna.samplers import RandomSampler

from d2_cityscapes.config import model_tasks
from d2_cityscapes.errors import nearest
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.space.plan import (
    VAL_LOSS,
    Objective,
    SearchPlan,
    named_value,
)
from d2_cityscapes.search.space.space import parse_space
from d2_cityscapes.shipped import find_config, nearest_config
from d2_cityscapes.yaml_text import load_yaml

__all__ = ["read_plan"]

_SECTIONS = (
    "base",
    "overrides",
    "space",
    "constraints",
    "objective",
    "budget",
    "trials",
    "sampler",
    "pruner",
)
# Keys that a trial sets, and what decides them.
_OWN_KEYS = {
    "OUTPUT_DIR": "--output-dir",
    "DATASETS.TEST": "objective.dataset",
    "TEST.EVAL_PERIOD": "budget.reports",
    "TEST.VAL_LOSS_PERIOD": "budget.reports",
    "TEST.VAL_LOSS_DATASET": "objective.dataset",
    "SOLVER.CHECKPOINT_PERIOD": "budget.reports",
    "SOLVER.EPOCHS.EVAL_PERIOD": "budget.reports",
    "SOLVER.EPOCHS.VAL_LOSS_PERIOD": "budget.reports",
    "SOLVER.EPOCHS.CHECKPOINT_PERIOD": "budget.reports",
    "TEST.EXPECTED_RESULTS": "nothing: trials are compared, not checked",
}


def read_plan(source: str | Path, opts: Sequence[str] = (), *, seed: int = 0) -> SearchPlan:
    """Read a search file and check all of it that needs no training.

    Args:
        source: YAML file with ``base``, ``space`` and, as wanted, the other sections; see
            configs/search.
        opts: KEY VALUE overrides for every trial.
        seed: of trials whose config has none.

    Raises:
        D2CityscapesError: anything that no trial could run with.
    """
    source = find_config(source)
    document = _read_document(source)
    try:
        return _checked(_parse(source, document, opts, seed))
    except SearchError as error:
        raise SearchError(f"{source}: {error}") from error


def _checked(plan: SearchPlan) -> SearchPlan:
    """The plan with the values of `Space.fixed`, once it fits the config that it searches."""
    _check_keys(plan)
    cfg = plan.unsampled
    for parameter in plan.space.parameters:
        named_value(cfg, parameter.name)
    fixed = {
        name: named_value(cfg, name)
        for constraint in plan.space.constraints
        for name in constraint.names
        if name not in plan.space.distributions
    }
    tasks = (*model_tasks(cfg), VAL_LOSS)
    if plan.objective.task not in tasks:
        raise SearchError(
            f"objective: task {plan.objective.task!r}: this model has {', '.join(tasks)}"
        )
    plan = replace(plan, space=replace(plan.space, fixed=fixed))
    plan.space.sample(RandomSampler(0))  # one that meets the constraints
    # Detectron2's config knows the types.
    plan.config({})
    for parameter in plan.space.parameters:
        for stored in parameter.extremes():
            plan.config({parameter.name: parameter.decode(stored)})
    return plan


def _read_document(source: Path) -> dict:
    if not source.exists():
        raise SearchError(f"{source}: no such search file{nearest_config(source)}")
    try:
        document = load_yaml(source.read_text())
    except OSError as error:
        raise SearchError(f"{source}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise SearchError(f"{source}: nested without end") from error
    except (yaml.YAMLError, ValueError) as error:  # such as bytes that are no text, a 30th February
        message = " ".join(str(error).split())
        raise SearchError(f"{source}: {message}") from error
    if not isinstance(document, dict) or "base" not in document or "space" not in document:
        raise SearchError(
            f"{source}: not a search file: it needs base (a training config) and space"
        )
    for section in document:
        _check_name(str(section), _SECTIONS, str(source))
    return document


def _parse(source: Path, document: Mapping[str, Any], opts: Sequence[str], seed: int) -> SearchPlan:
    objective = Objective(
        **_section(document, "objective", ("dataset", "task", "metric", "direction"))
    )
    if objective.task == VAL_LOSS and "direction" not in document["objective"]:
        objective = replace(objective, direction="minimize")
    if objective.direction not in ("maximize", "minimize"):
        raise SearchError(f"objective: direction {objective.direction!r}: maximize or minimize")
    trials = document.get("trials")
    if trials is not None:
        _check_count("trials", trials)
    return SearchPlan(
        source=source,
        base=source.parent / str(document["base"]),
        overrides=_section(document, "overrides"),
        opts=tuple(opts),
        space=parse_space(document["space"], document.get("constraints") or ()),
        objective=objective,
        budget=_budget(document),
        trials=trials,
        sampler={"name": "tpe", "startup_trials": 10}
        | _named(document, "sampler", {"tpe": ("startup_trials",), "random": ()}),
        pruner={"name": "median"}
        | _named(
            document,
            "pruner",
            {
                "median": ("startup_trials", "warmup_reports"),
                "hyperband": ("min_reports", "reduction_factor"),
                "none": (),
            },
        ),
        seed=seed,
    )


def _budget(document: Mapping[str, Any]) -> dict[str, Any]:
    budget = {"reports": 1} | _section(document, "budget", ("epochs", "iterations", "reports"))
    if ("epochs" in budget) == ("iterations" in budget):
        raise SearchError("budget: give a trial its length, either epochs or iterations")
    _check_count("budget: reports", budget["reports"])
    if "iterations" in budget:
        _check_count("budget: iterations", budget["iterations"])
    elif not isinstance(budget["epochs"], int | float) or not budget["epochs"] > 0:
        raise SearchError(f"budget: epochs {budget['epochs']!r}: use a positive number")
    else:
        budget["epochs"] = float(budget["epochs"])
    return budget


def _named(
    document: Mapping[str, Any], section: str, kinds: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """A section with a name, and whole numbers that go with it."""
    numbers = sorted({number for names in kinds.values() for number in names})
    found = _section(document, section, ("name", *numbers))
    name = found.get("name", next(iter(kinds)))
    if name not in kinds:
        raise SearchError(f"{section}: name {name!r}: use one of {', '.join(kinds)}")
    for key, value in found.items():
        if key == "name":
            continue
        if key not in kinds[name]:
            raise SearchError(f"{section}: {name} takes no {key}")
        _check_count(f"{section}: {key}", value, least=0)
    return found


def _section(
    document: Mapping[str, Any], section: str, known: Sequence[str] | None = None
) -> dict[str, Any]:
    found = document.get(section) or {}
    if not isinstance(found, Mapping):
        raise SearchError(f"{section}: write KEY: VALUE lines")
    for name in found if known is not None else ():
        _check_name(str(name), known or (), section)
    return dict(found)


def _check_name(name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        raise SearchError(f"{where}: unknown {name!r}{nearest(name, known, cutoff=0)}")


def _check_count(what: str, value: Any, *, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SearchError(f"{what} {value!r}: use a whole number from {least} up")


def _check_keys(plan: SearchPlan) -> None:
    """Refuse keys that two sides would set."""
    searched = {parameter.key for parameter in plan.space.parameters}
    whole = {parameter.key for parameter in plan.space.parameters if not parameter.indices}
    places = [("space", searched, set()), ("overrides", plan.overrides, whole)]
    for where, keys, taken in [*places, ("command line", plan.opts[::2], searched)]:
        for key in keys:
            if key in _OWN_KEYS:
                raise SearchError(f"{where}: {key} is decided by {_OWN_KEYS[key]}")
            if key in taken:
                raise SearchError(f"{where}: {key} is searched over; name it in one place")

"""The study of a search: made once, found again by name, and never mixed with another."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import optuna
import yaml
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.storages import BaseStorage

from d2_cityscapes.config import leaves
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.space.plan import SearchPlan
from d2_cityscapes.search.space.sampling import FeasibleSampler
from d2_cityscapes.search.space.space import Space, parse_space
from d2_cityscapes.search.trials.storage import SEARCH, is_new, open_storage, shown, storage_errors

__all__ = [
    "Search",
    "build_pruner",
    "check_study",
    "describe",
    "load_search",
    "open_search",
]

# Keys that may differ from machine to machine.
_MACHINE_KEYS = {
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "SOLVER.AMP.ENABLED",
    "DATALOADER.NUM_WORKERS",
    "TEST.NUM_PICTURES",
    "VIS_PERIOD",
    "CUDNN_BENCHMARK",
    "VERSION",
}
_PATIENCE = 10.0  # seconds for another process to finish making a study


class Search(NamedTuple):
    """A study and what it searches.

    Attributes:
        study: Optuna's; ``study.user_attrs["search"]`` holds the description of `describe`.
        space: what varies; `Space.values` makes config values of a trial's ``params``.
    """

    study: optuna.Study
    space: Space


def load_search(storage: str, study_name: str | None = None) -> Search:
    """A search from its storage, to look at: whatever state it is in.

    Args:
        storage: address, see `open_storage`.
        study_name: may be left out where the storage holds one study.

    Raises:
        SearchError: no such storage or study, or a study that d2c search did not make.
    """
    opened = open_storage(storage)
    with storage_errors(storage):
        names = optuna.get_all_study_names(opened)
        if study_name is None and len(names) == 1:
            study_name = names[0]
        if study_name not in names:
            raise SearchError(
                f"--storage {shown(storage)}: no study {study_name!r}; it holds "
                f"{', '.join(names) or 'none'}"
            )
        study = optuna.load_study(study_name=study_name, storage=opened)
        description = _description(study)
        space = parse_space(description["space"], description["constraints"])
    return Search(study, replace(space, fixed=description["fixed"]))


def check_study(plan: SearchPlan, *, storage: str, study_name: str) -> str | None:
    """Refuse a storage that cannot be used, or whose study of this name is another search.

    No study is created.

    Returns:
        The id of the study, see `describe`; None where there is none yet.

    Raises:
        SearchError: see there.
    """
    if is_new(storage):
        return None
    opened = open_storage(storage)
    with storage_errors(storage):
        if study_name not in optuna.get_all_study_names(opened):
            return None
        study = optuna.load_study(study_name=study_name, storage=opened)
        _refuse_another(study, describe(plan), storage)
        return _description(study)["id"]


def open_search(plan: SearchPlan, *, storage: str, study_name: str) -> Search:
    """The study of a plan, created where the storage has none of this name.

    Raises:
        SearchError: the storage cannot be used, or its study of this name is another search: it is
            left as it was.
    """
    opened = open_storage(storage)
    ours = describe(plan)
    with storage_errors(storage):
        study = _create_or_load(opened, study_name, ours)
        _refuse_another(study, ours, storage)
    study.sampler = FeasibleSampler(
        plan.space,
        name=plan.sampler["name"],
        startup_trials=plan.sampler["startup_trials"],
        seed=plan.seed,
    )
    study.pruner = build_pruner(plan.pruner, reports=plan.budget["reports"])
    return Search(study, plan.space)


def describe(plan: SearchPlan) -> dict[str, Any]:
    """What is searched, as the study keeps it.

    Returns:
        "space", "constraints", "objective" and "budget" as in a search file, "fixed" as in `Space`,
        "config": the text of the config that all trials share, and "id", by which trial folders
        know their study.
    """
    return {
        "id": uuid.uuid4().hex,
        "space": plan.space.entries(),
        "constraints": [constraint.text for constraint in plan.space.constraints],
        "fixed": dict(plan.space.fixed),
        "objective": asdict(plan.objective),
        "budget": dict(plan.budget),
        "config": plan.config({}).dump(),
    }


def build_pruner(settings: Mapping[str, Any], *, reports: int) -> BasePruner:
    """The pruner of a plan, in steps of one report.

    Args:
        settings: {"name": "median", "startup_trials": 10, "warmup_reports": 1}, {"name":
            "hyperband", "min_reports": 1, "reduction_factor": 3} or {"name": "none"}.
        reports: in a whole trial.
    """
    if settings["name"] == "median":
        return MedianPruner(
            n_startup_trials=settings.get("startup_trials", 10),
            # Optuna leaves steps below this one alone; ours begin with 1
            n_warmup_steps=settings.get("warmup_reports", 1) + 1,
        )
    if settings["name"] == "hyperband":
        return HyperbandPruner(
            min_resource=max(settings.get("min_reports", 1), 1),
            max_resource=reports,
            reduction_factor=max(settings.get("reduction_factor", 3), 2),
        )
    return NopPruner()


def _create_or_load(
    storage: BaseStorage, name: str, description: Mapping[str, Any]
) -> optuna.Study:
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, direction=description["objective"]["direction"]
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        deadline = time.monotonic() + _PATIENCE
        while SEARCH not in study.user_attrs and not study.get_trials(deepcopy=False):
            if time.monotonic() > deadline:  # its maker was killed before it came so far
                break
            time.sleep(0.2)
        else:
            return study
    study.set_user_attr(SEARCH, dict(description))
    return study


def _refuse_another(study: optuna.Study, ours: Mapping[str, Any], storage: str) -> None:
    differences = _differences(_description(study), ours)
    if differences:
        raise SearchError(
            f"study {study.study_name!r} in {shown(storage)} is another search: {differences[0]}; "
            "name another --study-name",
            details=differences if len(differences) > 1 else (),
        )


def _description(study: optuna.Study) -> dict[str, Any]:
    description = study.user_attrs.get(SEARCH)
    if not isinstance(description, dict) or "space" not in description:
        raise SearchError(
            f"study {study.study_name!r} was not made by d2c search: name another --study-name"
        )
    return description


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """One line for each thing in which two descriptions are not the same search."""
    lines = []
    for part in ("space", "objective", "budget"):
        lines += _changes(theirs[part], ours[part], f"{part}: ")
    if sorted(theirs["constraints"]) != sorted(ours["constraints"]):
        lines.append(f"constraints: {theirs['constraints']} there, {ours['constraints']} here")
    before, now = (dict(leaves(yaml.safe_load(d["config"]))) for d in (theirs, ours))
    # What only one of them has is another version of Detectron2.
    common = (before.keys() & now.keys()) - _MACHINE_KEYS
    return lines + _changes({k: before[k] for k in common}, {k: now[k] for k in common}, "")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[str]:
    return [
        f"{prefix}{name} is {before.get(name)} there, {now.get(name)} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]

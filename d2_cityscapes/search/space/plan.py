"""What is searched, what each trial runs, and what counts as better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from d2_cityscapes.config import leaves, plain
from d2_cityscapes.data.folds import register_folds
from d2_cityscapes.engine.setup import ConfigError, load_config
from d2_cityscapes.errors import nearest
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.space.space import Space, split_name

__all__ = [
    "VAL_LOSS",
    "Objective",
    "SearchPlan",
    "key_values",
    "named_value",
    "value_at",
]

VAL_LOSS = "val_loss"


@dataclass(frozen=True)
class Objective:
    """What a trial is judged by.

    Attributes:
        dataset: that it is evaluated on.
        task, metric: as in results.json, e.g. "segm" and "AP"; or "val_loss" and the name of a
            training loss, e.g. "total_loss", see TEST.VAL_LOSS_PERIOD.
        direction: "maximize" or "minimize".
    """

    dataset: str = "cityscapes_shards_val_1"
    task: str = "segm"
    metric: str = "AP"
    direction: str = "maximize"

    def __str__(self) -> str:
        return f"{self.task} {self.metric}"


@dataclass(frozen=True)
class SearchPlan:
    """A search file, with the overrides of the command line.

    Attributes:
        source: the file.
        base: the training config that is searched.
        overrides: key -> value that every trial changes in it.
        opts: KEY VALUE pairs of the command line; they win over `overrides` and the budget.
        space, objective: see there.
        budget: {"epochs" or "iterations": length of a trial, "reports": evaluations in it}.
        trials: how many; None where the file does not say.
        sampler: {"name": "tpe" or "random", "startup_trials"}.
        pruner: {"name": "median", "hyperband" or "none", ...}, see `build_pruner`.
        seed: of trials whose config has none.
    """

    source: Path
    base: Path
    overrides: Mapping[str, Any]
    opts: tuple[str, ...]
    space: Space
    objective: Objective
    budget: Mapping[str, Any]
    trials: int | None
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any]
    seed: int

    def config(
        self,
        values: Mapping[str, Any],
        *,
        output_dir: str | Path = "",
        seed: int | None = None,
    ) -> CfgNode:
        """The config of a trial.

        Args:
            values: name -> value, for some or all of `space`.
            output_dir: becomes OUTPUT_DIR.
            seed: becomes SEED; None for the config's own, or `seed` where that is random.

        Raises:
            D2CityscapesError: an unknown key (with the nearest names), an index behind the end of
                its list, a value of a wrong type.
        """
        length = {"epochs": "SOLVER.EPOCHS.MAX_ITER", "iterations": "SOLVER.MAX_ITER"}
        opts: list[Any] = ["TEST.NUM_PICTURES", 0, *key_values(self.overrides)]
        opts += key_values({length[k]: v for k, v in self.budget.items() if k in length})
        opts += [*self.opts, *key_values(self._whole_values(values))]
        if seed is not None:
            opts += ["SEED", seed]
        cfg = self.load(opts).clone()
        cfg.defrost()
        cfg.SEED = cfg.SEED if cfg.SEED >= 0 else self.seed
        cfg.OUTPUT_DIR = str(output_dir)
        register_folds([self.objective.dataset])
        cfg.DATASETS.TEST = (self.objective.dataset,)
        cfg.TEST.EXPECTED_RESULTS = []
        by_loss = self.objective.task == VAL_LOSS
        period = self.report_period(cfg)
        cfg.SOLVER.CHECKPOINT_PERIOD = period
        cfg.TEST.EVAL_PERIOD = 0 if by_loss else period
        cfg.TEST.VAL_LOSS_PERIOD = period if by_loss else 0
        cfg.TEST.VAL_LOSS_DATASET = self.objective.dataset if by_loss else ""
        cfg.freeze()
        return cfg

    def final_config(self, values: Mapping[str, Any], *, output_dir: str | Path) -> CfgNode:
        """The base config, command line included, with searched values: a full training."""
        opts = [*self.opts, *key_values(self._whole_values(values))]
        cfg = self.load(opts, train=False).clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = str(output_dir)
        cfg.freeze()
        return cfg

    def report_period(self, cfg: CfgNode) -> int:
        """Iterations between two reports of a trial."""
        return math.ceil(cfg.SOLVER.MAX_ITER / self.budget["reports"])

    @cached_property
    def unsampled(self) -> CfgNode:
        """The base config with overrides and command line: what the space varies."""
        return self.load([*key_values(self.overrides), *self.opts], train=False)

    def _whole_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values of whole keys: elements of lists are put into what the config has else."""
        whole: dict[str, Any] = {}
        for parameter in self.space.parameters:
            if parameter.name in values:
                before = whole.get(parameter.key, value_at(self.unsampled, parameter.key))
                whole[parameter.key] = _replaced(before, parameter.name, values[parameter.name])
        return whole

    def load(self, opts: Sequence[Any], *, train: bool = True) -> CfgNode:
        """The base config with KEY VALUE pairs, see `load_config`."""
        try:
            return load_config(self.base, opts, train=train)
        except ConfigError as error:
            message = str(error).removeprefix("command line: ")
            raise ConfigError(f"{self.source}: {message}") from error


def value_at(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key.

    Raises:
        SearchError: there is no such key, with the nearest names; or it is a whole section.
    """
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            raise SearchError(f"unknown config key {key}{nearest(key, dict(leaves(cfg)))}")
        node = node[part]
    if isinstance(node, CfgNode):
        raise SearchError(
            f"{key} is a section: name one of its keys, e.g. {key}.{next(iter(node))}"
        )
    return node


def key_values(values: Mapping[str, Any]) -> list[Any]:
    """KEY VALUE pairs of a command line."""
    return [part for pair in values.items() for part in pair]


def named_value(cfg: CfgNode, name: str) -> Any:
    """What a config has under a parameter's name: "MODEL.RPN.IOU_THRESHOLDS[0]".

    Raises:
        SearchError: there is no such key or element.
    """
    return _element_at(value_at(cfg, split_name(name)[0]), name)


def _element_at(value: Any, name: str) -> Any:
    """The element that a name has indices of, in the value of its key.

    Raises:
        SearchError: there is none.
    """
    key, indices = split_name(name)
    for index in indices:
        if not isinstance(value, list | tuple):
            raise SearchError(f"{name}: {key} holds no list there, but {value!r}")
        if index >= len(value):
            raise SearchError(
                f"{name}: wrong index {index}: {key} has {len(value)} there, {value!r}"
            )
        value = value[index]
    return value


def _replaced(before: Any, name: str, value: Any) -> Any:
    """The value of a key with the element that a name has indices of replaced.

    A whole number may stand for a float.
    """
    _, indices = split_name(name)
    old = _element_at(before, name)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not indices:
        return value
    if type(old) is not type(value):
        raise SearchError(
            f"{name}: {value!r} cannot take the place of {old!r}: use a {type(old).__name__}"
        )
    whole = parent = plain(before)
    for index in indices[:-1]:
        parent = parent[index]
    parent[indices[-1]] = value
    return whole

"""Learning rate and weight decay by the names of parameters: patterns, and layer decay."""

from __future__ import annotations

import fnmatch
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from torch import nn

from d2_cityscapes.config import value_of
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.step.layer_decay import layers_below

__all__ = ["check_parameter_settings", "named_settings", "parameter_groups"]

logger = logging.getLogger(__name__)

_RATES, _DECAYS = "SOLVER.LR_MULTIPLIERS", "SOLVER.WEIGHT_DECAY_OVERRIDES"


class _Setting(NamedTuple):
    """Of one parameter: `why` names what of the config made it so."""

    lr: float
    weight_decay: float
    why: str


def named_settings(cfg: CfgNode) -> bool:
    """Whether the config says anything by the names of parameters; else all is Detectron2's."""
    solver = cfg.SOLVER
    return bool(solver.LR_MULTIPLIERS or solver.WEIGHT_DECAY_OVERRIDES or solver.LAYER_DECAY != 1.0)


def check_parameter_settings(cfg: CfgNode) -> None:
    """Refuse what no parameter can have, before anything is built.

    Raises:
        ConfigError: no list of [pattern, number], or a number out of its range.
    """
    for key, least, words in ((_RATES, 0.0, "above 0"), (_DECAYS, -math.inf, "of 0 or more")):
        for entry in value_of(cfg, key):
            pair = isinstance(entry, list | tuple) and len(entry) == 2
            number = entry[1] if pair and isinstance(entry[0], str) else None
            well = isinstance(number, int | float) and not isinstance(number, bool)
            if not (well and least < number < math.inf and number >= 0):  # type: ignore[operator]
                raise ConfigError(
                    f"{key}: {entry!r} is not [pattern, number], the number {words}, such as "
                    '["backbone.*", 0.1]'
                )
    if not 0 < cfg.SOLVER.LAYER_DECAY <= 1:
        raise ConfigError(
            f"SOLVER.LAYER_DECAY {cfg.SOLVER.LAYER_DECAY}: use a number above 0, up to 1 for none"
        )


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Groups for an optimizer: Detectron2's, changed by what SOLVER says of names.

    A rate is Detectron2's (BASE_LR, for biases times BIAS_LR_FACTOR) times the number of
    LR_MULTIPLIERS times LAYER_DECAY ** (L + 1 - l) in layer l of L, see `layers_below`. A weight
    decay is that of WEIGHT_DECAY_OVERRIDES, else Detectron2's. Of the patterns of one key the last
    that matches a name wins. The groups are logged as a table.

    Args:
        cfg: the whole config.
        model: not wrapped. What requires no gradient is left out; it counts as matched, so that
            the same patterns serve stages that freeze other parts.

    Raises:
        ConfigError: a pattern that matches no parameter, or none that a later one leaves it; a
            layer decay for a model without layers.
    """
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    if not named_settings(cfg):
        return groups
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = _winners(_RATES, solver.LR_MULTIPLIERS, name_of.values())
    decays = _winners(_DECAYS, solver.WEIGHT_DECAY_OVERRIDES, name_of.values())
    below = layers_below(model, solver.LAYER_DECAY)
    changed: list[dict[str, Any]] = []
    lines: dict[_Setting, list[int]] = {}
    for group in groups:
        for parameter in group["params"]:
            name = name_of[id(parameter)]
            setting = _setting(solver, group, rates.get(name), decays.get(name), below.get(name))
            changed.append(
                {"params": [parameter], "lr": setting.lr, "weight_decay": setting.weight_decay}
            )
            lines.setdefault(setting, []).append(parameter.numel())
    logger.info("parameters by rate and weight decay\n%s", _table(lines))
    return reduce_param_groups(changed)


def _setting(
    solver: CfgNode,
    group: Mapping[str, Any],
    rate: tuple[str, float] | None,
    decay: tuple[str, float] | None,
    below: int | None,
) -> _Setting:
    """Of a parameter of one of Detectron2's groups, with the patterns that won, if any did."""
    lr, weight_decay = group["lr"], group.get("weight_decay", solver.WEIGHT_DECAY)
    why = []
    if rate is not None:
        lr *= rate[1]
        why.append(f"rate x {rate[1]:g}: {rate[0]}")
    if below:
        lr *= solver.LAYER_DECAY**below
        why.append(f"rate x {solver.LAYER_DECAY:g}^{below}: layers above")
    if decay is not None:
        weight_decay = decay[1]
        why.append(f"weight decay {decay[1]:g}: {decay[0]}")
    return _Setting(lr, weight_decay, ", ".join(why))


def _winners(key: str, entries: Sequence, names: Any) -> dict[str, tuple[str, float]]:
    """Name -> the last entry whose pattern matches it."""
    names = list(names)
    won: dict[str, tuple[str, float]] = {}
    matched: dict[int, list[str]] = {}
    for number, (pattern, _) in enumerate(entries):
        matched[number] = fnmatch.filter(names, pattern)
        if not matched[number]:
            raise ConfigError(
                f"{key}: {pattern!r} matches no parameter of the model, whose names begin with "
                f"{', '.join(dict.fromkeys(name.partition('.')[0] for name in names))}"
            )
        won |= dict.fromkeys(matched[number], tuple(entries[number]))
    for number, found in matched.items():
        later = set(itertools.chain(*(matched[n] for n in matched if n > number)))
        if later.issuperset(found):
            raise ConfigError(
                f"{key}: {entries[number][0]!r} has no effect, for what it matches later entries "
                "match too, and the last one wins: leave it out, or put it behind them"
            )
    return won


def _table(lines: Mapping[_Setting, list[int]]) -> str:
    head = f"{'rate':>10}  {'weight decay':>12}  {'tensors':>7}  {'parameters':>12}  by"
    rows = [
        f"{s.lr:>10.4g}  {s.weight_decay:>12g}  {len(sizes):>7}  {sum(sizes):>12,}  {s.why}"
        for s, sizes in sorted(lines.items(), key=lambda line: line[0])
    ]
    return "\n".join([head, *rows])

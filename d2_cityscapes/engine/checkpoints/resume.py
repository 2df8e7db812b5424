"""What of a config a run may change when it resumes, and what not.

Rates, weight decay, momentum, schedule and lengths are those of the config from there on, and the
log says which of them are new. The kind of the optimizer and MODEL.FREEZE stay.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode

from d2_cityscapes.config import leaves, plain
from d2_cityscapes.engine.checkpoints.checkpointer import CheckpointError, last_checkpoint
from d2_cityscapes.engine.distributed import check_step_size, scale_to_world
from d2_cityscapes.engine.setup import ConfigError, images_per_step
from d2_cityscapes.modeling.freezing.freeze import FreezeError, parse_schedule
from d2_cityscapes.tensor_files import read_tensor_file

__all__ = [
    "changed_settings",
    "check_freeze_settings",
    "check_resume",
    "check_states",
    "freeze_settings",
    "parameter_names",
    "regrouped",
    "run_settings",
]

logger = logging.getLogger(__name__)

# What steps follow from, by the beginning of the key.
_STEERING = tuple(
    f"SOLVER.{key}"
    for key in (
        "BASE_LR", "BIAS_LR", "CLIP_", "COSINE_", "GAMMA", "LAYER_DECAY", "LR_", "MOMENTUM",
        "NESTEROV", "PLATEAU", "POLY_", "STEPS", "WARMUP", "WEIGHT_DECAY",
    )
)  # fmt: skip


def check_resume(cfg: CfgNode, *, processes: int = 1) -> None:
    """Refuse to resume what `check_states` refuses, before anything in OUTPUT_DIR changes.

    Args:
        cfg: of the run that would go on; without a checkpoint in its OUTPUT_DIR there is none.
        processes: that train together.

    Raises:
        D2CityscapesError: settings that cannot change, or a checkpoint that cannot be read.
    """
    path = last_checkpoint(cfg.OUTPUT_DIR)
    try:
        content = read_tensor_file(path) if path else None
    except OSError:
        return  # the checkpointer says it
    states = content.get("trainer") if isinstance(content, Mapping) else None
    if isinstance(states, Mapping):
        check_states(states, scale_to_world(cfg, processes), path)


def run_settings(cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint tells of the config of its run, in plain values."""
    return {
        "freeze": freeze_settings(cfg),
        "images_per_step": images_per_step(cfg),
        "solver": dict(leaves(cfg.SOLVER)),
    }


def check_states(saved: Mapping[str, Any], cfg: CfgNode, checkpoint: str) -> None:
    """Refuse to go on from the states of a training with settings that cannot change.

    Args:
        saved: with the `run_settings` of the run that wrote the checkpoint, as far as it tells.
        cfg: of the run that resumes, scaled to its processes.
        checkpoint: file, for the message.

    Raises:
        CheckpointError: there is no state of the optimizer.
        ConfigError: another kind of optimizer, whose state says nothing to this one; steps of
            another size; or other rates for a training that is at its end.
        FreezeError: other modules are frozen.
    """
    if not isinstance(saved.get("_trainer"), Mapping) or "optimizer" not in saved["_trainer"]:
        raise CheckpointError(
            f"{checkpoint}: cannot be resumed from, as it has no state of the optimizer: give it "
            "as MODEL.WEIGHTS, with a new OUTPUT_DIR"
        )
    check_freeze_settings(saved.get("freeze"), cfg, checkpoint)
    check_step_size(saved.get("images_per_step"), cfg, checkpoint)
    before = _solver(saved).get("OPTIMIZER", cfg.SOLVER.OPTIMIZER)
    if before != cfg.SOLVER.OPTIMIZER:
        raise ConfigError(
            f"{checkpoint} was trained with SOLVER.OPTIMIZER {before}, and cannot be resumed with "
            f"{cfg.SOLVER.OPTIMIZER}: to go on from its weights, train in a new OUTPUT_DIR with "
            f"MODEL.WEIGHTS {checkpoint}"
        )
    steps = int(saved.get("iteration", -1)) + 1
    late = [text for text in changed_settings(saved, cfg) if text.startswith(_STEERING)]
    if late and steps >= cfg.SOLVER.MAX_ITER:
        raise ConfigError(
            f"{checkpoint} has all {cfg.SOLVER.MAX_ITER} steps behind it, and none would be made "
            f"with {late[0]}: give the same again, or a larger SOLVER.MAX_ITER"
        )


def changed_settings(saved: Mapping[str, Any], cfg: CfgNode) -> list[str]:
    """ "SOLVER.BASE_LR 0.0001 (was 0.002)", for every key of SOLVER that is another one now.

    Args:
        saved: as in `check_states`.
        cfg: of the run that resumes.
    """
    before = _solver(saved)
    return [
        f"SOLVER.{key} {value} (was {before[key]})"
        for key, value in sorted(leaves(cfg.SOLVER))
        if key in before and plain(before[key]) != plain(value)
    ]


def parameter_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The parameters of each group of an optimizer, in its order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def regrouped(
    state: Mapping[str, Any], saved: Sequence | None, now: Sequence[Sequence[str]], checkpoint: str
) -> Mapping[str, Any]:
    """The state of an optimizer for other groups of the same parameters.

    Detectron2 puts parameters of equal settings into one group, so that another weight decay may
    make other groups.

    Args:
        state: from ``optimizer.state_dict()``, with parameters by number, through the groups.
        saved: `parameter_names` at that time; None where the checkpoint does not tell.
        now: those of the optimizer that takes the state.
        checkpoint: file, for the message.

    Raises:
        CheckpointError: they are other parameters.
    """
    groups = state["param_groups"]
    if saved == now:
        return state
    if saved is None:
        fits = [len(group["params"]) for group in groups] == [len(names) for names in now]
    else:
        fits = sorted(itertools.chain(*saved)) == sorted(itertools.chain(*now))
    if not fits:
        raise CheckpointError(
            f"{checkpoint}: its optimizer has other parameters or groups of them: resume with the "
            "config.yaml of that training, or give it as MODEL.WEIGHTS, with a new OUTPUT_DIR"
        )
    if saved is None:
        return state
    numbers = itertools.chain(*(group["params"] for group in groups))
    number_of = dict(zip(itertools.chain(*saved), numbers, strict=True))
    return {
        **state,
        "param_groups": [
            groups[0] | {"params": [number_of[name] for name in names]} for names in now
        ],
    }


def freeze_settings(cfg: CfgNode) -> dict:
    """MODEL.FREEZE in plain values, for a checkpoint: equal wherever the two freeze the same."""
    freeze = cfg.MODEL.FREEZE
    return {
        "MODULES": sorted(freeze.MODULES),
        "SCHEDULE": [[start, sorted(names)] for start, names in parse_schedule(freeze.SCHEDULE)],
        "NORM_EVAL": freeze.NORM_EVAL,
    }


def check_freeze_settings(saved: Mapping | None, cfg: CfgNode, checkpoint: str) -> None:
    """Refuse to resume a run that froze other modules than the config does.

    Its optimizer holds other parameters, and what was frozen until now would have moved.

    Args:
        saved: `freeze_settings` of the run that wrote the checkpoint; None where it has none.
        checkpoint: file, for the message.

    Raises:
        FreezeError: the two differ.
    """
    if saved is None:
        logger.warning("%s does not say what was frozen: MODEL.FREEZE is not compared", checkpoint)
        return
    asked = freeze_settings(cfg)
    nothing_frozen = not saved["MODULES"] and not asked["MODULES"]  # NORM_EVAL is for frozen ones
    if saved == asked or nothing_frozen:
        return
    raise FreezeError(
        f"{checkpoint} was trained with MODEL.FREEZE {_text(saved)}, and cannot be resumed with "
        f"{_text(asked)}: to go on from its weights, train in a new OUTPUT_DIR with "
        f"MODEL.WEIGHTS {checkpoint}"
    )


def _solver(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    found = saved.get("solver")
    return found if isinstance(found, Mapping) else {}


def _text(settings: Mapping) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())

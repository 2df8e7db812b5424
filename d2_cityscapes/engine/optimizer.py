"""The optimizer that SOLVER.OPTIMIZER names, over Detectron2's parameter groups."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from detectron2.solver.build import get_default_optimizer_params
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.modeling.freeze import later_parameters_on

__all__ = ["build_optimizer"]

_ADAMS = {"ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW}


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over the parameters of a model that train, now or later.

    Frozen ones are left out, unless MODEL.FREEZE.SCHEDULE unfreezes them in the course of training.

    SGD is Detectron2's own. Adam and AdamW have PyTorch's default betas and the same parameter
    groups as SGD: SOLVER.WEIGHT_DECAY, WEIGHT_DECAY_NORM, WEIGHT_DECAY_BIAS, BIAS_LR_FACTOR and
    CLIP_GRADIENTS act on all three. Adam's weight decay is L2, AdamW's is decoupled.

    Raises:
        ConfigError: another name, or settings that PyTorch refuses.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name not in ("SGD", *_ADAMS):
        raise ConfigError(f"SOLVER.OPTIMIZER {name!r}: use SGD, ADAM or ADAMW")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE not in ("value", "norm"):
        raise ConfigError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {clip.CLIP_TYPE!r}: use value or norm")
    try:
        with later_parameters_on(model):
            optimizer = _build_sgd(cfg, model) if name == "SGD" else _build_adam(cfg, model)
    except ValueError as error:  # no momentum for Nesterov, a negative rate, nothing to train
        raise ConfigError(f"SOLVER.OPTIMIZER {name!r}: {error}") from error
    if clip.ENABLED:
        optimizer.register_step_pre_hook(lambda optimizer, *_: _clip_gradients(optimizer, clip))
    return optimizer


def _build_sgd(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False  # `_clip_gradients` does it
    return build_detectron2_optimizer(cfg, model)


def _build_adam(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    kind = _ADAMS[solver.OPTIMIZER]
    return kind(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)


def _clip_gradients(optimizer: torch.optim.Optimizer, clip: CfgNode) -> None:
    """Clip each parameter's gradient by itself, as Detectron2 does.

    Parameters without gradient are passed over: PyTorch's functions need not take them, and what is
    frozen for now has none.
    """
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if parameter.grad is None:
            continue
        if clip.CLIP_TYPE == "norm":
            clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)
        else:
            clip_grad_value_(parameter, clip.CLIP_VALUE)

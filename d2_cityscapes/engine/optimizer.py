"""The optimizer that SOLVER.OPTIMIZER names, over Detectron2's parameter groups."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from d2_cityscapes.engine.setup import ConfigError

__all__ = ["build_optimizer"]

_ADAMS = {"ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW}


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over the trainable parameters of a model; frozen ones are left out.

    SGD is Detectron2's own. Adam and AdamW have PyTorch's default betas and the same parameter
    groups as SGD: SOLVER.WEIGHT_DECAY, WEIGHT_DECAY_NORM, WEIGHT_DECAY_BIAS, BIAS_LR_FACTOR and
    CLIP_GRADIENTS act on all three. Adam's weight decay is L2, AdamW's is decoupled.

    Raises:
        ConfigError: another name.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    if solver.OPTIMIZER not in _ADAMS:
        raise ConfigError(f"SOLVER.OPTIMIZER {solver.OPTIMIZER!r}: use SGD, ADAM or ADAMW")
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    kind = maybe_add_gradient_clipping(cfg, _ADAMS[solver.OPTIMIZER])
    return kind(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)

"""The optimizer that SOLVER.OPTIMIZER names, over Detectron2's parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.step.parameter_groups import named_settings, parameter_groups
from d2_cityscapes.errors import building
from d2_cityscapes.modeling.freezing.freeze import later_parameters_on

__all__ = ["build_optimizer", "by_kind", "largest_gradient", "optimized_parameters"]

_CLIP_TYPES = ("value", "norm", "full_model")
_KINDS = {"SGD": torch.optim.SGD, "ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW}


@building("the optimizer")
def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over the parameters of a model that train, now or later.

    Frozen ones are left out, unless MODEL.FREEZE.SCHEDULE unfreezes them in the course of training.

    SGD is Detectron2's own. Adam and AdamW have PyTorch's default betas and the same parameter
    groups as SGD: SOLVER.WEIGHT_DECAY, WEIGHT_DECAY_NORM, WEIGHT_DECAY_BIAS, BIAS_LR_FACTOR and
    CLIP_GRADIENTS act on all three. Adam's weight decay is L2, AdamW's is decoupled. What of SOLVER
    changes single parameters, LR_MULTIPLIERS and the like: see `parameter_groups`.

    SOLVER.FUSED changes no result beyond rounding. The states of fused and other optimizers take
    each other's place, in either layout of memory. Of a loaded state the settings of the groups do
    not count: weight decay, momentum and the like stay those of the config.

    Raises:
        ConfigError: another name, settings that PyTorch refuses, patterns without effect, or no
            fused optimizer for the device of the model.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name not in _KINDS:
        raise ConfigError(f"SOLVER.OPTIMIZER {name!r}: use SGD, ADAM or ADAMW")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE not in _CLIP_TYPES:
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {clip.CLIP_TYPE!r}: use {' or '.join(_CLIP_TYPES)}"
        )
    if cfg.SOLVER.FUSED:
        _check_fused(name, next(model.parameters()).device)
    own = name != "SGD" or cfg.SOLVER.FUSED or named_settings(cfg)
    try:
        with later_parameters_on(model):
            optimizer = _build(cfg, model) if own else _build_detectron2(cfg, model)
    except ValueError as error:  # no momentum for Nesterov, a negative rate, nothing to train
        raise ConfigError(f"SOLVER.OPTIMIZER {name!r}: {error}") from error
    if clip.ENABLED:  # what it says is read now, so that it is known to act
        how = (clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE)
        optimizer.register_step_pre_hook(lambda optimizer, *_: _clip_gradients(optimizer, *how))
    optimizer.register_load_state_dict_pre_hook(_keep_settings)
    if cfg.SOLVER.FUSED:
        optimizer.register_step_pre_hook(lambda optimizer, *_: _complete_state(optimizer))
    return optimizer


def optimized_parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """All that it moves at some time, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _build_detectron2(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False  # `_clip_gradients` does it
    return build_detectron2_optimizer(cfg, model)


def _build(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    solver = cfg.SOLVER
    groups = parameter_groups(cfg, model)
    options = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "SGD":
        options |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    if solver.FUSED:
        options["fused"] = True
    return _KINDS[solver.OPTIMIZER](groups, **options)


def _check_fused(name: str, device: torch.device) -> None:
    """Let PyTorch make a fused step of one number: else it refuses in the first of the training."""
    number = torch.zeros(1, device=device, requires_grad=True)
    number.grad = torch.zeros_like(number)
    try:
        _KINDS[name]([number], lr=0.1, fused=True).step()
    except RuntimeError as error:
        raise ConfigError(
            f"SOLVER.FUSED: PyTorch {torch.__version__} has no fused {name} for {device.type}: "
            "set it to False"
        ) from error


def _keep_settings(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """A loaded state does not decide how the optimizer steps, which its groups say too.

    Only its rates stay, which a schedule has moved; see `resume_rates`.
    """
    own, saved = optimizer.param_groups, state["param_groups"]
    if len(own) != len(saved):
        return state  # PyTorch refuses it
    groups = [
        group | {"params": other["params"], "lr": other["lr"]}
        for group, other in zip(own, saved, strict=True)
    ]
    return state | {"param_groups": groups}


def _complete_state(optimizer: torch.optim.Optimizer) -> None:
    """Give fused kernels the state that they take for granted.

    That is momentum for all parameters or for none, where what is unfrozen later has none yet: 0 is
    the same. And the parameter's layout in memory, which a loaded state may not have: they take the
    numbers of all one after another.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if group.get("momentum") and "momentum_buffer" not in state:
                state = optimizer.state[parameter]
                state["momentum_buffer"] = torch.zeros_like(parameter)
            for name, value in state.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter).copy_(value)


def _clip_gradients(
    optimizer: torch.optim.Optimizer, kind: str, most: float, norm_type: float
) -> None:
    """Clip each parameter's gradient by itself, as Detectron2 does, but all at once.

    Or, by "full_model", all of them as one vector, as Mask2Former and DETR do it. What has no
    gradient, such as what is frozen for now, is passed over.
    """
    parameters = optimized_parameters(optimizer)
    if kind == "value":
        clip_grad_value_(parameters, most)
    elif kind == "full_model":
        clip_grad_norm_(parameters, most, norm_type)
    else:
        _clip_norms(parameters, most, norm_type)


@torch.no_grad()
def _clip_norms(parameters: Iterable[nn.Parameter], most: float, norm_type: float) -> None:
    """`torch.nn.utils.clip_grad_norm_` of every gradient by itself, to the bit."""
    for gradients in _gradients_by_kind(parameters):
        norms = torch.stack(torch._foreach_norm(gradients, float(norm_type)))
        factors = (most / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()))


def largest_gradient(optimizer: torch.optim.Optimizer) -> Tensor:
    """The largest absolute value in all gradients, without a wait for the device.

    It is finite if and only if all of them are.

    Returns:
        0-dim tensor where the gradients are; 0 where there are none.
    """
    parameters = optimized_parameters(optimizer)
    kinds = _gradients_by_kind(parameters)
    if not kinds:
        return torch.zeros((), device=parameters[0].device)
    norms = [norm for gradients in kinds for norm in torch._foreach_norm(gradients, math.inf)]
    return torch.stack(norms).amax()


def _gradients_by_kind(parameters: Iterable[nn.Parameter]) -> list[list[Tensor]]:
    gradients = (parameter.grad for parameter in parameters)
    return by_kind(g for g in gradients if g is not None and g.numel())


def by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Lists of one device and type each, which ``torch._foreach`` functions take in one go."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(kinds.values())

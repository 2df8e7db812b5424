"""A training on several processes: the data-parallel model, and lengths that suit their number."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_cityscapes.engine.launch import launch
from d2_cityscapes.engine.setup import LENGTHS, ConfigError, images_per_step

__all__ = [
    "buffers_stay",
    "check_step_size",
    "distribute",
    "launch",
    "scale_to_world",
    "wrap_again",
]

logger = logging.getLogger(__name__)

# What SOLVER.REFERENCE_WORLD_SIZE scales beside `LENGTHS`.
_RATES = ("BASE_LR", "BASE_LR_END")


def distribute(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel where there are several processes.

    Buffers are not exchanged: batch norms have the statistics of their own rank.

    Raises:
        ConfigError: a device that one process alone can train on, or norms that it cannot compute
            over several.
    """
    if comm.get_world_size() == 1:
        return model
    kind = torch.device(cfg.MODEL.DEVICE).type
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"MODEL.DEVICE {kind}: several processes train on cuda or cpu only")
    on_gpu = kind == "cuda"
    if not on_gpu and any(isinstance(layer, nn.SyncBatchNorm) for layer in model.modules()):
        raise ConfigError(
            "norm SyncBN works over several processes on GPUs only: on the CPU use naiveSyncBN"
        )
    return DistributedDataParallel(
        model,
        device_ids=[torch.cuda.current_device()] if on_gpu else None,
        gradient_as_bucket_view=True,
        static_graph=_has_static_graph(cfg),
        **buffers_stay(),
    )


def wrap_again(model: DistributedDataParallel) -> DistributedDataParallel:
    """A new wrapper with the settings of the old one, over the parameters that train now."""
    stay: dict[str, Any] = {} if model.broadcast_buffers else buffers_stay()
    if "forward_sync_buffers" in stay:
        stay["init_sync"] = False  # it would give all ranks the statistics of the first
    return DistributedDataParallel(
        model.module,
        device_ids=model.device_ids,
        output_device=model.output_device,
        process_group=model.process_group,
        find_unused_parameters=model.find_unused_parameters,
        gradient_as_bucket_view=model.gradient_as_bucket_view,
        static_graph=model.static_graph,
        **stay,
    )


def scale_to_world(cfg: CfgNode, world_size: int) -> CfgNode:
    """The config for another number of processes than SOLVER.REFERENCE_WORLD_SIZE; 0 leaves it.

    With s times as many processes a step has s times as many images, the learning rates are s times
    as high (Goyal et al., "Accurate, Large Minibatch SGD", 2017), and all lengths in iterations s
    times shorter, so that each process keeps its batch and a training sees as many images. The
    decay of averaged weights is taken to the power of s (Busbridge et al., "How to Scale Your EMA",
    2023). It is Detectron2's ``auto_scale_workers`` with the keys of this package, but no length
    above 0 becomes 0, which would be "never".

    Raises:
        ConfigError: a batch that the reference number of processes cannot share.
    """
    solver = cfg.SOLVER
    reference = solver.REFERENCE_WORLD_SIZE
    if reference in (0, world_size):
        return cfg
    if reference < 0 or solver.IMS_PER_BATCH % reference:
        raise ConfigError(
            f"SOLVER.REFERENCE_WORLD_SIZE {reference}: use a divisor of SOLVER.IMS_PER_BATCH "
            f"{solver.IMS_PER_BATCH}, or 0 to scale nothing"
        )
    scale = world_size / reference
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = solver.IMS_PER_BATCH // reference * world_size
    cfg.SOLVER.EMA_DECAY = solver.EMA_DECAY**scale
    cfg.SOLVER.PLATEAU.MIN_LR = solver.PLATEAU.MIN_LR * scale
    for key in _RATES:
        cfg.SOLVER[key] = solver[key] * scale
    for name in LENGTHS:
        section, key = name.split(".")
        cfg[section][key] = _shortened(cfg[section][key], scale)
    cfg.MODEL.FREEZE.SCHEDULE = [
        [_shortened(start, scale), patterns] for start, patterns in cfg.MODEL.FREEZE.SCHEDULE
    ]
    cfg.SOLVER.REFERENCE_WORLD_SIZE = world_size
    logger.info(
        "scaled from %d to %d processes: %d images a step, learning rate %g, %d iterations",
        reference, world_size, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER,
    )  # fmt: skip
    if frozen:
        cfg.freeze()
    return cfg


def check_step_size(saved: int | None, cfg: CfgNode, checkpoint: str) -> None:
    """Refuse to resume with iterations that `scale_to_world` has made longer or shorter.

    Args:
        saved: `images_per_step` of the run that wrote the checkpoint; None where it has none.
        checkpoint: file, for the message.

    Raises:
        ConfigError: the two differ.
    """
    now = images_per_step(cfg)
    if cfg.SOLVER.REFERENCE_WORLD_SIZE and saved not in (None, now):
        raise ConfigError(
            f"{checkpoint} counts steps of {saved} images, and SOLVER.REFERENCE_WORLD_SIZE makes "
            f"them {now} on {comm.get_world_size()} processes: resume on as many as before (with "
            "REFERENCE_WORLD_SIZE 0 from the start, any number can resume)"
        )


def _shortened(length: int | tuple[int, ...], scale: float) -> Any:
    if isinstance(length, tuple):
        return tuple(_shortened(part, scale) for part in length)
    return max(round(length / scale), 1) if length > 0 else length


def _has_static_graph(cfg: CfgNode) -> bool:
    """Whether every step computes gradients for the same parameters, in one backward pass.

    PyTorch learns the order of the gradients from the first step and relies on it. That excludes
    what trains only later, a first batch whose gradients are not exchanged, and compiled parts,
    which it would have to split. Parts without examples in a batch, such as a mask head without
    foreground, do have gradients: zeros.
    """
    changing = cfg.MODEL.FREEZE.SCHEDULE or cfg.MODEL.COMPILE
    return not changing and cfg.SOLVER.ACCUMULATE_STEPS == 1


def buffers_stay() -> dict[str, Any]:
    """The argument of DistributedDataParallel that leaves buffers alone; new since PyTorch 2.13."""
    known = inspect.signature(DistributedDataParallel).parameters
    new = "forward_sync_buffers"
    return {new if new in known else "broadcast_buffers": False}

"""Activation checkpointing: what lies inside a stage of the backbone is computed again, not kept.

Only the input of each stage stays in memory until the backward pass, which runs the stage a second
time before it goes through it. By stages rather than by residual blocks: the ends of the blocks are
two thirds of what a ResNet-50 with frozen norms keeps. One stage at a time is whole again when the
heads, which keep the most, have been freed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["checkpoint_stages"]

_BLOCKS = (CNNBlockBase, resnet.BasicBlock, resnet.Bottleneck)


def checkpoint_stages(model: nn.Module) -> int:
    """Let the backbone of a model checkpoint each of its stages in training, in place.

    A model without such residual blocks, or its backbone, says by ``stages_to_checkpoint`` which
    they are. The stages change their class, nothing else.

    Returns:
        How many.

    Raises:
        D2CityscapesError: there are none.
    """
    backbone = getattr(model, "backbone", nn.Module())
    tells: list[Any] = [
        module for module in model.modules() if hasattr(module, "stages_to_checkpoint")
    ]
    stages = [stage for module in tells for stage in module.stages_to_checkpoint()]
    stages = stages or [module for module in backbone.modules() if _is_stage(module)]
    if not stages:
        raise D2CityscapesError(
            f"MODEL.BACKBONE.ACTIVATION_CHECKPOINTING: {type(backbone).__name__} has no residual "
            "blocks: set it to False, or use a ResNet"
        )
    for stage in stages:
        kind = type(stage)
        stage.__class__ = type(
            kind.__name__, (_Checkpointed, kind), {"__module__": kind.__module__}
        )
    return len(stages)


def _is_stage(module: nn.Module) -> bool:
    """Whether it is residual blocks in sequence."""
    return (
        type(module) is nn.Sequential
        and len(module) > 0
        and all(isinstance(block, _BLOCKS) for block in module)
    )


class _Checkpointed:
    """Mixed into a stage, which comes behind it: keeps only its input for the backward pass."""

    training: bool

    def forward(self, *inputs: Any, **named: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        if not (self.training and torch.is_grad_enabled()):
            return forward(*inputs, **named)
        if torch.compiler.is_compiling():  # a graph moves statistics in its forward part alone
            return checkpoint(forward, *inputs, use_reentrant=False, **named)
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=self._contexts, **named)

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """For the first pass and the second."""
        return contextlib.nullcontext(), _statistics_as_they_are(self)  # type: ignore[arg-type]


@contextlib.contextmanager
def _statistics_as_they_are(stage: nn.Module) -> Iterator[None]:
    """Running statistics of batch norms do not move; the first pass has counted the batch."""
    norms = [layer for layer in stage.modules() if isinstance(layer, _NormBase)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in norms]
    for layer in norms:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(norms, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, batches

"""What a model says in training."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

__all__ = ["losses_of"]


def losses_of(
    model: nn.Module, inputs: list[dict[str, Any]], *, iteration: int = 0
) -> dict[str, Tensor]:
    """Its losses at an iteration, the same each time, though samplers draw at random."""
    torch.manual_seed(0)
    with EventStorage(iteration):
        return model.train()(inputs)

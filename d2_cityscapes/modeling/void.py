"""Batches without a pixel that counts, of which Detectron2's semantic head makes a loss of nan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["zero_if_void"]

_LOSS = "loss_sem_seg"


def zero_if_void(
    losses: dict[str, Tensor], batched_inputs: list[dict[str, Any]], head: nn.Module
) -> dict[str, Tensor]:
    """The losses, with a semantic one of 0, and gradients of zeros, where no pixel counts.

    Where any does, the losses are those given, bit for bit.

    Args:
        losses: by name, of the model in training.
        batched_inputs: with "sem_seg" (H, W) train ids.
        head: the semantic head; its ``ignore_value`` marks pixels that do not count.
    """
    ignored = getattr(head, "ignore_value", None)
    if _LOSS not in losses or ignored is None:
        return losses
    loss = losses[_LOSS]
    counts = torch.stack([(x["sem_seg"] != ignored).any() for x in batched_inputs]).any()
    if counts.device.type == "cpu":
        if counts:
            return losses
        return {**losses, _LOSS: torch.nan_to_num(loss, nan=0.0)}
    # classes that are on the GPU already: the host would wait for it
    return {**losses, _LOSS: torch.where(counts, loss, torch.nan_to_num(loss, nan=0.0))}

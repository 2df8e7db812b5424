"""Scores of classes become a map of classes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["best_classes"]


@torch.no_grad()
def best_classes(scores: Iterable[Tensor]) -> Tensor:
    """(H, W) uint8 class of the best score at each pixel, the first of equal ones.

    A running maximum: the same as ``argmax(dim=0)``, which takes several times as long on the CPU,
    and needs no more than one map at a time.

    Args:
        scores: (C, H, W), or one (H, W) map a class; up to 256 classes, no nan.
    """
    maps = iter(scores)
    best = next(maps).clone()
    classes = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for number, own in enumerate(maps, start=1):
        # the larger number is always the later class, so that no pixel has to be chosen by a mask
        torch.maximum(classes, (own > best).to(torch.uint8).mul_(number), out=classes)
        torch.maximum(best, own, out=best)
    return classes

"""Samples of positives and negatives in a fixed number of slots, drawn without asking how many.

Detectron2's `subsample_labels` lists the positives and shuffles them, for which it has to know how
many there are. Here each candidate gets a random key, and those with the largest keys are the
sample: likewise each subset of the size is as likely as any other.

Shape letters: N images, A candidates (anchors, proposals) of each, P slots for positives, Q for
negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from d2_cityscapes.modeling.execution.wait_free.where import random_keys

__all__ = ["Sample", "draw_sample"]


@dataclass(frozen=True)
class Sample:
    """Of each image the first `num_positive` slots, and the first `num_negative`, count.

    Attributes:
        positive: (N, P) int64 indices of candidates, in random order.
        negative: (N, Q) int64, likewise.
        num_positive: (N,) int64.
        num_negative: (N,) int64.
    """

    positive: Tensor
    negative: Tensor
    num_positive: Tensor
    num_negative: Tensor

    @property
    def indices(self) -> Tensor:
        """(N, P + Q) int64: positives, then negatives."""
        return torch.cat([self.positive, self.negative], dim=1)

    @property
    def counts(self) -> Tensor:
        """(N, P + Q) bool: which slots of `indices` count."""
        return torch.cat([self.positive_counts, _first(self.num_negative, self.negative)], dim=1)

    @property
    def positive_counts(self) -> Tensor:
        """(N, P) bool: which slots of `positive` count."""
        return _first(self.num_positive, self.positive)


def draw_sample(
    positive: Tensor, negative: Tensor, num_samples: int, positive_fraction: float
) -> Sample:
    """As many, and distributed, as by `detectron2.modeling.sampling.subsample_labels`.

    Args:
        positive: (N, A) bool.
        negative: (N, A) bool, nowhere where `positive` is.
        num_samples: of an image, at most: positives, filled up with negatives.
        positive_fraction: the largest part of positives.
    """
    candidates = positive.shape[1]
    keys = random_keys(tuple(positive.shape), positive.device)
    most = int(num_samples * positive_fraction)
    num_positive = positive.sum(dim=1).clamp(max=most)
    num_negative = torch.minimum(negative.sum(dim=1), num_samples - num_positive)
    return Sample(
        _largest(keys, positive, min(most, candidates)),
        _largest(keys, negative, min(num_samples, candidates)),
        num_positive,
        num_negative,
    )


def _largest(keys: Tensor, among: Tensor, number: int) -> Tensor:
    return keys.masked_fill(~among, -1.0).topk(number, dim=1).indices


def _first(number: Tensor, slots: Tensor) -> Tensor:
    return torch.arange(slots.shape[1], device=slots.device) < number[:, None]

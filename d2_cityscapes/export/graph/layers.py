"""Layers that ask for sizes which a graph does not know before it runs."""

from __future__ import annotations

from typing import Any

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from torch import Tensor, nn
from torch.nn import functional as F

from d2_cityscapes.modeling.execution.swapping import swap_classes

__all__ = ["make_traceable"]


def make_traceable(model: nn.Module) -> None:
    """Let layers take regions of which nobody knows how many there are, in place.

    Layers change their class, nothing else; in evaluation they compute what they did, batch norms
    up to rounding.
    """
    swap_classes(model, {Conv2d: _PlainConv2d})
    heads = getattr(model, "roi_heads", None)
    if heads is not None:
        swap_classes(heads, _PLAIN_NORMS)


class _PlainConv2d(Conv2d):
    """Detectron2's convolution without its look at empty batches, which is for training."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def _scaled(norm: Any, x: Tensor) -> Tensor:
    """(N, C, H, W) by the statistics of a batch norm; PyTorch's function asks whether N is 0."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    return x * scale[:, None, None] + shift[:, None, None]


class _PlainNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _scaled(self, input)


class _PlainFrozenNorm(FrozenBatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _scaled(self, x)


_PLAIN_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: _PlainNorm,
    nn.SyncBatchNorm: _PlainNorm,
    NaiveSyncBatchNorm: _PlainNorm,
    FrozenBatchNorm2d: _PlainFrozenNorm,
}

"""Pixels as a network takes them: normalised and padded within the graph.

Shape letters: h, w pixels of the picture behind the resize; P, Q those of it padded, multiples of
what the backbone needs; H, W pixels of the picture itself, which results are given for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Pixels", "Size", "Sizes", "padded"]

Size = tuple[int, int]


def padded(size: Size, multiple: int) -> Size:
    """(P, Q) of (h, w)."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


@dataclass(frozen=True)
class Sizes:
    """Of a fixed graph, where they are all known when it is made.

    Attributes:
        network: (h, w).
        output: (H, W).
    """

    network: Size
    output: Size


class Pixels(nn.Module):
    """(h, w, 3) uint8 RGB to (1, 3, P, Q) float32: channels in order, mean, deviation, padding.

    In a fixed graph the picture comes as it is. In one of any size it comes padded, with any
    values, by ``run.py``, which leaves the sizes of the network's maps multiples of each other for
    the exporter; the padding is set to what Detectron2 pads with here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, *, bgr: bool, multiple: int, sizes: Sizes | None):
        """
        Args:
            mean, std: of the channels as the network has them.
            bgr: whether these are BGR.
            multiple: of which P and Q are.
            sizes: None for a graph of any size.
        """
        super().__init__()
        self.register_buffer("mean", mean.detach().clone().float().view(1, -1, 1, 1))
        self.register_buffer("std", std.detach().clone().float().view(1, -1, 1, 1))
        self.bgr = bgr
        self.multiple = multiple
        self.sizes = sizes

    def forward(self, image: Tensor, limits: Tensor) -> Tensor:
        """
        Args:
            image: see above.
            limits: (2,) h, w.
        """
        pixels = image.permute(2, 0, 1)[None]
        if self.bgr:
            pixels = pixels[:, [2, 1, 0]]
        x = (pixels.float() - self.mean) / self.std
        if self.sizes is not None:
            height, width = self.sizes.network
            bottom, right = padded((height, width), self.multiple)
            return F.pad(x, (0, right - width, 0, bottom - height))
        if self.multiple == 1:
            return x
        rows = torch.arange(x.shape[2]) < limits[0]
        columns = torch.arange(x.shape[3]) < limits[1]
        return torch.where(rows[:, None] & columns, x, 0.0)

"""Semantic scores brought to the size of the picture, and the best class of each pixel.

Shape letters as in `d2_cityscapes.export.graph.pixels`; C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2_cityscapes.export.graph.pixels import Pixels, Sizes

__all__ = ["SemanticGraph", "label_map"]


def label_map(logits: Tensor, size: Tensor, sizes: Sizes | None) -> Tensor:
    """(H, W) uint8 train ids.

    Args:
        logits: (1, C, P, Q) of the padded picture.
        size: (4,) int64 h, w, H, W.
        sizes: the same where they are known, or None.
    """
    if sizes is None:
        h, w, height, width = size.tolist()
        for side, most in ((h, logits.shape[2]), (w, logits.shape[3])):
            torch._check(side >= 1)
            torch._check(side <= most)
        torch._check(height >= 1)
        torch._check(width >= 1)
    else:
        (h, w), (height, width) = sizes.network, sizes.output
    logits = logits[:, :, :h, :w]
    if sizes is None or (h, w) != (height, width):
        logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    return logits[0].argmax(dim=0).to(torch.uint8)


class SemanticGraph(nn.Module):
    """A picture to {"sem_seg"}."""

    outputs = ("sem_seg",)

    def __init__(self, pixels: Pixels, logits: nn.Module) -> None:
        """
        Args:
            pixels: the beginning of the graph.
            logits: from (1, 3, P, Q) to (1, C, P, Q).
        """
        super().__init__()
        self.pixels = pixels
        self.logits = logits

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: as `Pixels` takes it.
            size: (4,) int64 h, w, H, W.

        Returns:
            (H, W) uint8 train ids.
        """
        x = self.pixels(image, size[:2])
        return (label_map(self.logits(x), size, self.pixels.sizes),)

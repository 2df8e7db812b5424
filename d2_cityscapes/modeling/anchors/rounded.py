"""torchvision's anchors: rounded to whole pixels, and spread over the padded image by its rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from torch import Tensor

__all__ = ["RoundedAnchorGenerator"]


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """`DefaultAnchorGenerator` with the anchors of torchvision's Faster and Mask R-CNN.

    Three things differ, as in torchvision.models.detection.anchor_utils.AnchorGenerator:

    * corners are rounded to whole pixels, half to even: of size 32 and ratio 0.5 an anchor is 46 x
      22, not 45.25 x 22.63;
    * of several sizes and ratios on one level, the ratio is outermost;
    * the distance of anchors is the side of the padded image divided by that of the map, rounded
      down, which on the level that is pooled from the last one may be less than its stride: 61 px
      for a height of 800, whose map has 13 rows.

    The first anchor's centre is the image's corner (MODEL.ANCHOR_GENERATOR.OFFSET 0).
    """

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
    ) -> None:
        """
        Args:
            sizes: as in `DefaultAnchorGenerator`, in pixels.
            aspect_ratios: the same, height / width.
            strides: of the levels, in pixels; the first divides the padded image.
        """
        super().__init__(sizes=sizes, aspect_ratios=aspect_ratios, strides=strides, offset=0.0)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        return {
            "sizes": cfg.MODEL.ANCHOR_GENERATOR.SIZES,
            "aspect_ratios": cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
            "strides": [x.stride for x in input_shape],
        }

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
    ) -> Tensor:
        """(A, 4) float32 XYXY boxes around 0, in pixels."""
        of_height = torch.tensor(aspect_ratios, dtype=torch.float32).sqrt()
        side = torch.tensor(sizes, dtype=torch.float32)
        widths = ((1 / of_height)[:, None] * side).flatten()
        heights = (of_height[:, None] * side).flatten()
        return (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).round()

    def _grid_anchors(self, grid_sizes: list[list[int]]) -> list[Tensor]:
        """For each level (h * w * A, 4) XYXY boxes in pixels."""
        padded = [side * self.strides[0] for side in grid_sizes[0]]
        anchors = []
        for size, cells in zip(grid_sizes, self.cell_anchors, strict=True):
            y, x = (
                torch.arange(number, dtype=torch.float32, device=cells.device) * (whole // number)
                for number, whole in zip(size, padded, strict=True)
            )
            y, x = (place.flatten() for place in torch.meshgrid(y, x, indexing="ij"))
            shifts = torch.stack([x, y, x, y], dim=1)
            anchors.append((shifts[:, None] + cells).reshape(-1, 4))
        return anchors

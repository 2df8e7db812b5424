"""Regions pooled at the boxes that they have, in mixed precision too.

Detectron2's `ROIAlign` gives its boxes the type of the map. bfloat16 has 8 significant bits: beyond
x = 1024 px its grid is 8 px wide, and features are pooled up to 4 px beside a box whose targets are
cut at the box itself. Here boxes stay float32, and the map becomes it for this one operation, as
PyTorch's autocast does anyway.
"""

from __future__ import annotations

from detectron2.layers import ROIAlign
from torch import Tensor, nn
from torchvision.ops import RoIPool

from d2_cityscapes.modeling.execution.swapping import swap_classes

__all__ = ["pool_exactly"]


def pool_exactly(model: nn.Module) -> int:
    """Let every `ROIAlign` and `RoIPool` of a model take its boxes as they are, in place.

    Layers change their class, nothing else; with maps in float32 they compute what they did.

    Returns:
        How many.
    """
    return swap_classes(model, _EXACT)


class _ExactROIAlign(ROIAlign):
    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return super().forward(input.float(), rois.float()).to(input.dtype)


class _ExactRoIPool(RoIPool):
    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return super().forward(input.float(), rois.float()).to(input.dtype)


_EXACT: dict[type[nn.Module], type[nn.Module]] = {
    ROIAlign: _ExactROIAlign,
    RoIPool: _ExactRoIPool,
}

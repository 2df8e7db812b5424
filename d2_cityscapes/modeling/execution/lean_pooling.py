"""Max pooling without its indices, which PyTorch keeps for the backward pass.

They are int64: of the pooling in a ResNet's stem 64 MiB for an image of 1024 x 2048, as much as the
map that is pooled takes in half precision. The backward pass finds them again.
"""

from __future__ import annotations

from detectron2.modeling.backbone.resnet import BasicStem
from torch import Tensor, nn
from torch.nn import functional as F

from d2_cityscapes.layers.recomputed import max_pool, recomputed
from d2_cityscapes.modeling.execution.swapping import swap_classes

__all__ = ["pool_without_indices"]


def pool_without_indices(model: nn.Module) -> int:
    """Let the stem of a ResNet, of Detectron2 or torchvision, keep no indices, in place.

    Layers change their class, nothing else; what they compute, and their gradients, are the same to
    the last bit.

    Returns:
        How many.
    """
    return swap_classes(model, _LEAN)


class _LeanStem(BasicStem):
    def forward(self, x: Tensor) -> Tensor:
        return max_pool(F.relu_(self.conv1(x)), size=3, stride=2, padding=1)


class _LeanMaxPool2d(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        pool = super().forward
        return pool(input) if self.return_indices else recomputed(pool, input)


_LEAN: dict[type[nn.Module], type[nn.Module]] = {
    BasicStem: _LeanStem,
    nn.MaxPool2d: _LeanMaxPool2d,
}

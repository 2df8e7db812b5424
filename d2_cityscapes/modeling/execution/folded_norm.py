"""Frozen batch norm computed in the weights of the convolution before it.

A frozen norm is y = x * scale + shift with two constants for each channel. Behind a convolution
that is the convolution with weight * scale, plus shift: no pass over the map, forward or backward.
The weights themselves stay as they are, and so do the names of all tensors. What is multiplied is
made anew in every forward pass, so that it follows the optimizer and `load_state_dict`, and the
gradient of the weights comes through the product.
"""

from __future__ import annotations

import itertools

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["fold_frozen_norms"]

# Where a convolution and a norm are layers side by side: these call one right after the other.
_IN_ORDER = (nn.Sequential, IntermediateLayerGetter, resnet.BasicBlock, resnet.Bottleneck)


def fold_frozen_norms(model: nn.Module) -> int:
    """Let every convolution with a frozen batch norm behind it compute both, in place.

    Layers change their class, nothing else. Call it once.

    Returns:
        How many norms.

    Raises:
        D2CityscapesError: there are none.
    """
    found = 0
    for layer in list(model.modules()):
        if type(layer) is Conv2d and isinstance(layer.norm, FrozenBatchNorm2d):
            layer.__class__ = _FoldedConv2d
            found += 1
        elif isinstance(layer, _IN_ORDER):
            for conv, norm in itertools.pairwise(layer.children()):
                if type(conv) is nn.Conv2d and type(norm) is FrozenBatchNorm2d:
                    conv.__class__, norm.__class__ = _FoldedTorchConv2d, _FoldedNorm
                    vars(conv)["behind"] = norm  # not as an attribute: it would be a layer in it
                    found += 1
    if not found:
        raise D2CityscapesError(
            "MODEL.RESNETS.FOLD_FROZEN_NORM: no convolution of the model has a frozen batch norm "
            "behind it: set it to False, or MODEL.RESNETS.NORM to FrozenBN"
        )
    return found


class _FoldedConv2d(Conv2d):
    """Detectron2's convolution, which has its norm and activation inside."""

    def forward(self, x: Tensor) -> Tensor:
        x = _convolve(self, self.norm, x)
        return x if self.activation is None else self.activation(x)


class _FoldedTorchConv2d(nn.Conv2d):
    """A convolution of PyTorch that computes the norm `behind` it."""

    behind: FrozenBatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        return _convolve(self, self.behind, x)


class _FoldedNorm(FrozenBatchNorm2d):
    """The norm behind a `_FoldedTorchConv2d`: nothing is left to do."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _convolve(conv: nn.Conv2d, norm: FrozenBatchNorm2d, x: Tensor) -> Tensor:
    # In the precision of weights and norm, float32 under autocast too, which rounds the product.
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)

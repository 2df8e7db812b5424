"""Cheap parts of a network that are computed a second time in the backward pass, not kept for it.

What autograd would keep of them is larger than what they are computed from: of a max pooling an
int64 index beside every cell, of a group norm under autocast its input and its output in float32.
Computed again they are the same numbers, to the last bit, and so are the gradients.

Shape letters: N images, C channels, H W cells.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["max_pool", "norm_and_leaky_relu", "recomputed"]


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, of which autograd keeps the inputs alone.

    Args:
        function: draws no random numbers and moves no statistics. It may change what it makes in
            place, but not its inputs.
        inputs: one of them, at least, needs a gradient, or nothing is kept anyway.
    """
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if not wanted or torch.compiler.is_compiling():  # a compiler decides by itself what is kept
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def max_pool(x: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """`max_pool2d` of (N, C, H, W) without its indices: 4 times a half precision map, 2 of float32.

    The map itself stays, which the layer before has usually kept already.
    """
    return recomputed(lambda maps: F.max_pool2d(maps, size, stride, padding), x)


def norm_and_leaky_relu(norm: nn.Module, x: Tensor, slope: float) -> Tensor:
    """A norm and a leaky ReLU, for layers that compute in the precision of their input.

    PyTorch's autocast lets a GPU compute group norms in float32. Of a map in half precision then
    two float32 maps would be kept, and a third one by the convolution behind it, which casts it
    back. Here that is done at once, and the map alone is kept. The backward pass, which needs five
    float32 maps for it, goes image by image.

    Args:
        norm: (N, C, H, W) to the same shape.
        x: (N, C, H, W).
        slope: of the leaky ReLU.

    Returns:
        (N, C, H, W), in the precision of `x` where that is a half one.
    """

    def compute(maps: Tensor) -> Tensor:
        # in place: neither a norm nor a convolution needs its output for the gradient
        return F.leaky_relu(norm(maps), slope, inplace=True)

    half = x.dtype in (torch.float16, torch.bfloat16) and x.device.type != "cpu"
    if not (half and isinstance(norm, nn.GroupNorm)):
        return compute(x)
    images = x.split(1)  # a group norm has its statistics from one image alone
    return torch.cat([recomputed(lambda own: compute(own).to(own.dtype), own) for own in images])

"""MiniDL: local detail, wider surroundings and context of one feature map, fused.

From Porzi et al., "Seamless Scene Segmentation", CVPR 2019, as its reference implementation has it:
the last convolution is 1x1, where the text says 3x3, and one norm serves all three branches.

Shape letters: N images, C channels, H W cells of the feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2_cityscapes.layers.recomputed import norm_and_leaky_relu

__all__ = ["LEAKY_SLOPE", "MiniDL", "init_layer", "sliding_mean"]

LEAKY_SLOPE = 0.01  # of all leaky ReLUs of the Seamless model

Norm = str | Callable[[int], nn.Module | None]

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "": lambda channels: nn.Identity(),
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": lambda channels: nn.GroupNorm(32, channels),
}


class MiniDL(nn.Module):
    """Three branches side by side: 3x3, dilated 3x3, and averages over a large sliding window.

    All convolutions are without bias. The window of the third branch moves by one cell, is never
    larger than the map, and its averages are extended to the size of the map by repeating those at
    the border: (k - 1) // 2 cells before, k // 2 after.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 128,
        pool_size: Sequence[int] = (64, 64),
        dilation: int = 6,
        norm: Norm = "BN",
        *,
        slope: float = LEAKY_SLOPE,
    ) -> None:
        """
        Args:
            in_channels: channels of the input.
            channels: of each branch, and of the output.
            pool_size: (height, width) of the window, in cells.
            dilation: of the second branch.
            norm: "BN", "SyncBN", "GN" (32 groups) or "" for none; or a function from a number of
                channels to a module, or to None for none.
            slope: of the leaky ReLU after each norm.
        """
        super().__init__()
        if len(pool_size) != 2 or min(pool_size) < 1:
            raise ValueError(f"pool_size {pool_size}; expected (height, width), both at least 1")
        self.pool_size = tuple(pool_size)
        self.slope = slope
        self.branch_local = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.branch_dilated = nn.Conv2d(
            in_channels, channels, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.branch_context = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.branch_norm = _make_norm(norm, 3 * channels)
        self.fuse = nn.Conv2d(3 * channels, channels, 1, bias=False)
        self.fuse_norm = _make_norm(norm, channels)
        gain = nn.init.calculate_gain("leaky_relu", slope)
        for conv in (self.branch_local, self.branch_dilated, self.branch_context, self.fuse):
            init_layer(conv, gain)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H, W), for any H and W."""
        branches = (self.branch_local(x), self.branch_dilated(x), self.context(x))
        hidden = norm_and_leaky_relu(self.branch_norm, torch.cat(branches, dim=1), self.slope)
        return norm_and_leaky_relu(self.fuse_norm, self.fuse(hidden), self.slope)

    def context(self, x: Tensor) -> Tensor:
        """The third branch before its norm: (N, in_channels, H, W) to (N, channels, H, W).

        Averaging and the 1x1 convolution can change places. So each is done where the tensor is
        smallest: an axis that the window covers is averaged away first, the convolution comes
        before the sliding windows if it has fewer channels to hand on than it gets.
        """
        windows = dict(zip((2, 3), self.pool_size, strict=True))
        # a size that is known only when an exported graph runs is no number to compare with
        known = [axis for axis in windows if not isinstance(x.shape[axis], torch.SymInt)]
        covered = [axis for axis in known if windows[axis] >= x.shape[axis]]
        averages = x.mean(covered, keepdim=True) if covered else x
        convolve_first = self.fuse.out_channels <= x.shape[1]
        if convolve_first:
            averages = self.branch_context(averages)
        for axis, window in windows.items():
            if axis not in covered:
                averages = sliding_mean(averages, window, axis)
        if not convolve_first:
            averages = self.branch_context(averages)
        return averages.expand(-1, -1, *x.shape[2:])


def sliding_mean(x: Tensor, window: int, axis: int) -> Tensor:
    """Means over a window that slides by one cell along one axis, as long as that axis.

    Written as a product with a band matrix: of all ways to share the sums of neighbouring windows
    it is the quickest with its gradient, adds at most `window` numbers and cannot overflow. Cells
    that are not finite spoil their whole line.

    Args:
        x: (N, C, H, W).
        window: cells; of an axis that has fewer, all of them.
        axis: 2 or 3.

    Returns:
        (N, C, H, W): the means, the first repeated (window - 1) // 2 times before, the last
        window // 2 times after.
    """
    length = x.shape[axis]
    least = torch.sym_min if isinstance(length, torch.SymInt) else min
    width: Any = least(window, length)
    cells = torch.arange(length, device=x.device)
    begins = (cells - (width - 1) // 2).clamp(0, length - width)[:, None]
    weights = ((cells >= begins) & (cells < begins + width)).to(x.dtype) / width
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        inner = x.permute(0, 2, 3, 1)  # (N, H, W, C), as it lies in memory, and so will the result
        return (weights @ inner.flatten(axis)).view(inner.shape).permute(0, 3, 1, 2)
    return weights @ x if axis == 2 else x @ weights.T


def init_layer(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, gain: float) -> None:
    """Normal weights of Glorot and Bengio's variance times the gain squared; a bias of 0."""
    nn.init.xavier_normal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _make_norm(norm: Norm, channels: int) -> nn.Module:
    if isinstance(norm, str):
        if norm not in _NORMS:
            raise ValueError(f"norm {norm!r}; expected one of {list(_NORMS)} or a function")
        return _NORMS[norm](channels)
    return norm(channels) or nn.Identity()

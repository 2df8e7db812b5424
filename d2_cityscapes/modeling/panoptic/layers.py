"""Layers with norm and leaky ReLU behind them, of which all parts of the Seamless model consist.

The reference has in-place activated batch norm there (iABN, synchronised over GPUs), which keeps
nothing but its output for the backward pass and computes its input again from it. Here they are
separate modules, a norm of Detectron2 by its name, usually "SyncBN", and a leaky ReLU in place:
what the norm gets and what the ReLU gives is kept, about twice the memory of iABN. SOLVER.AMP wins
it back.
"""

from __future__ import annotations

from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn

from d2_cityscapes.layers.mini_dl import LEAKY_SLOPE, init_layer

__all__ = ["NormConvTranspose2d", "NormLinear", "norm_and_activate"]

# What has a weight and perhaps a bias.
Weighted = nn.Linear | nn.modules.conv._ConvNd
_HIDDEN_GAIN = nn.init.calculate_gain("leaky_relu", LEAKY_SLOPE)


def norm_and_activate(conv: Conv2d, norm: str) -> None:
    """Put a norm and a leaky ReLU behind a convolution of Detectron2, and initialise it.

    Args:
        conv: changed in place; with a norm it loses its bias.
        norm: as in `detectron2.layers.get_norm`, "" for none.
    """
    if norm:
        conv.bias = None
    conv.norm = get_norm(norm, conv.out_channels)
    conv.activation = _leaky_relu()
    init_layer(conv, _HIDDEN_GAIN)


class NormLinear(nn.Linear):
    """A linear layer, norm and leaky ReLU: (R, in_features) to (R, out_features)."""

    def __init__(self, in_features: int, out_features: int, norm: str) -> None:
        """
        Args:
            in_features: of each of the R rows.
            out_features: of each of them.
            norm: as in `detectron2.layers.get_norm`; "" for none, and a bias instead.
        """
        super().__init__(in_features, out_features, bias=not norm)
        self.norm = get_norm(norm, out_features)
        self.activation = _leaky_relu()
        init_layer(self, _HIDDEN_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)[:, :, None, None]  # Detectron2's norms take maps
        if self.norm is not None:
            x = self.norm(x)
        return self.activation(x).flatten(1)


class NormConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that doubles height and width, norm and leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        """
        Args:
            in_channels: of the input.
            out_channels: of the output.
            norm: as in `detectron2.layers.get_norm`; "" for none, and a bias instead.
        """
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2, bias=not norm)
        self.norm = get_norm(norm, out_channels)
        self.activation = _leaky_relu()
        init_layer(self, _HIDDEN_GAIN)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        x = super().forward(x, output_size)
        if self.norm is not None:
            x = self.norm(x)
        return self.activation(x)


def _leaky_relu() -> nn.LeakyReLU:
    # in place: neither a norm nor a convolution needs its output for the gradient
    return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)

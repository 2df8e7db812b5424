"""Random colours, in the manner of SSD.

Shape letters: h, w pixels of the image.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from detectron2.data import transforms as T

from d2_cityscapes.data.augmentation.image_and_ids import PlanarTransform

__all__ = ["ColorJitter", "ColorTransform", "color_matrix"]

_BRIGHTNESS = 32  # grey levels, up and down
_CONTRAST = _SATURATION = (0.5, 1.5)  # factors
_HUE = 36  # degrees, either way: 18 of OpenCV's 180
_PROBABILITY = 0.5  # of each of the four

_LUMA = np.array([0.299, 0.587, 0.114])  # of R, G, B
_TO_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_BLOCK = 1 << 16  # pixels at a time, so that they stay in the cache


class ColorJitter(T.Augmentation):
    """Brightness, contrast, saturation and hue, each with a chance of one half.

    The ranges are those of SSD (Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016), as
    they stand in Mask2Former's recipes. There saturation and hue are changed in HSV; here both are
    linear, as turns and stretches of the colour around its luma (YIQ), so that all four are one
    matrix and one offset: the same greys, and nearly the same colours, several times sooner.
    """

    def __init__(self, image_format: str = "RGB") -> None:
        """
        Args:
            image_format: "RGB" or "BGR".
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """A `ColorTransform`, or none."""
        drawn = np.random.rand(4) < _PROBABILITY
        brightness, contrast, saturation, hue = np.random.uniform(-1, 1, 4) * drawn
        if not drawn.any():
            return T.NoOpTransform()
        matrix = color_matrix(
            _factor(contrast, _CONTRAST), _factor(saturation, _SATURATION), hue * _HUE
        )
        offset = matrix.sum(axis=1) * brightness * _BRIGHTNESS
        if self.image_format == "BGR":
            matrix, offset = matrix[::-1, ::-1], offset[::-1]
        return ColorTransform(matrix, offset)


def _factor(position: float, limits: tuple[float, float]) -> float:
    """The factor at a position from -1 to 1 between its limits, 1 at 0."""
    low, high = limits
    return 1 + position * (high - 1 if position > 0 else 1 - low)


def color_matrix(contrast: float, saturation: float, hue: float) -> np.ndarray:
    """(3, 3) from R, G, B to R, G, B: a change that keeps greys grey.

    Args:
        contrast: factor of all.
        saturation: factor of the distance from the grey of the same luma.
        hue: degrees by which colours turn around that grey.
    """
    turn = math.radians(hue)
    cosine, sine = saturation * math.cos(turn), saturation * math.sin(turn)
    in_yiq = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    matrix = np.linalg.solve(_TO_YIQ, in_yiq @ _TO_YIQ)
    # the coefficients of YIQ are rounded: a grey has to stay one to the bit
    return contrast * matrix / matrix.sum(axis=1, keepdims=True)


class ColorTransform(PlanarTransform):
    """matrix @ colour + offset of each pixel, rounded and clipped to uint8."""

    def __init__(self, matrix: np.ndarray, offset: np.ndarray) -> None:
        """
        Args:
            matrix: (3, 3), in the channel order of the images.
            offset: (3,) grey levels.
        """
        super().__init__()
        self.matrix = torch.from_numpy(np.array(matrix, dtype=np.float32))
        self.offset = torch.from_numpy(np.array(offset, dtype=np.float32))

    def apply_planes(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `PlanarTransform`."""
        flat = pixels.contiguous().view(3, -1)
        result = torch.empty_like(flat)
        offset = self.offset[:, None] + 0.5  # which rounds, as uint8 cuts off
        for part, out in zip(flat.split(_BLOCK, dim=1), result.split(_BLOCK, dim=1), strict=True):
            out.copy_(torch.addmm(offset, self.matrix, part.float()).clamp_(0, 255))
        return result.view(pixels.shape)

"""A picture seen by a model of semantics in windows, however large it is.

Shape letters: h, w pixels of the network's input; H, W pixels of the wanted output; C classes. A
band is some rows of scores, (C, r, w).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2_cityscapes.layers.best_classes import best_classes

__all__ = ["SlidingWindows", "starts"]


class SlidingWindows(nn.Module):
    """A model of semantics that sees one window of a picture after another (TEST.SLIDING_WINDOW).

    Where windows overlap their scores are averaged, as in mmsegmentation. One window is looked at
    at a time, and rows are finished as soon as no later window reaches them: with `labels` the
    memory is that of one window and of the scores of its rows, not of those of the picture.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int],
        stride: tuple[int, int],
        *,
        labels: bool = False,
    ) -> None:
        """
        Args:
            model: from a list of inputs to one of {"sem_seg": (C, H, W) scores}.
            size: (height, width) of a window in pixels of the network's input; a smaller input is
                one window.
            stride: (down, right) from one window to the next, no more than its size. The last ones
                end with the input.
            labels: whether the result is (H, W) uint8 classes instead.
        """
        super().__init__()
        self.model = model
        self._size, self._stride = size, stride
        self._labels = labels
        self.train(model.training)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """As the model, in eval mode.

        Args:
            batched_inputs: "image" (3, h, w), and "height" and "width" of the wanted output, by
                default those of the image.

        Returns:
            For each image {"sem_seg": (C, H, W) float32 scores, or (H, W) uint8 classes}.
        """
        return [{"sem_seg": self._whole(inputs)} for inputs in batched_inputs]

    @torch.no_grad()
    def _whole(self, inputs: dict[str, Any]) -> Tensor:
        h, w = inputs["image"].shape[-2:]
        output = (inputs.get("height", h), inputs.get("width", w))
        bands = _resized(self._bands(inputs["image"]), (h, w), output)
        if self._labels:
            return torch.cat([best_classes(band) for band in bands])
        return torch.cat(list(bands), dim=1)

    def _bands(self, image: Tensor) -> Iterator[Tensor]:
        """The scores of (3, h, w) in its own size, from top to bottom."""
        h, w = image.shape[-2:]
        height, width = min(self._size[0], h), min(self._size[1], w)
        tops, lefts = starts(h, height, self._stride[0]), starts(w, width, self._stride[1])
        across = _counts(w, width, lefts)
        down = _counts(h, height, tops)
        total: Tensor | None = None  # from row `begun` on
        begun = 0
        for top, left in itertools.product(tops, lefts):
            window = image[:, top : top + height, left : left + width]
            own = self.model([{"image": window, "height": height, "width": width}])[0]["sem_seg"]
            if total is None:
                total = own.new_zeros(len(own), height, w, dtype=torch.float32)
            if top > begun:
                done = top - begun
                yield total[:, :done] / _seen(down, across, begun, top).to(own.device)
                total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], dim=1)
                begun = top
            total[:, :, left : left + width] += own
        assert total is not None
        yield total / _seen(down, across, begun, h).to(total.device)


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows along one side begin; the last one ends with it."""
    last = length - size
    return [*range(0, last, stride), last]


def _counts(length: int, size: int, begins: list[int]) -> Tensor:
    """(length,) how many windows each place lies in."""
    counts = torch.zeros(length)
    for begin in begins:
        counts[begin : begin + size] += 1
    return counts


def _seen(down: Tensor, across: Tensor, top: int, bottom: int) -> Tensor:
    """(r, w) how many windows have seen each pixel of some rows."""
    return down[top:bottom, None] * across[None]


def _resized(
    bands: Iterable[Tensor], size: tuple[int, int], output: tuple[int, int]
) -> Iterator[Tensor]:
    """Bands of (C, *size) as those of its bilinear resize to (C, *output), corners not aligned."""
    if size == output:
        yield from bands
        return
    (h, _), (height, width) = size, output
    places = ((torch.arange(height) + 0.5) * (h / height) - 0.5).clamp(min=0)
    above = places.long()
    below = (above + 1).clamp(max=h - 1)
    held: Tensor | None = None  # the rows from `first` on, in the wanted width
    first, begun = 0, 0
    for band in bands:
        band = F.interpolate(
            band[None], size=(band.shape[1], width), mode="bilinear", align_corners=False
        )[0]
        held = band if held is None else torch.cat([held, band], dim=1)
        seen = first + held.shape[1]
        end = int((below < seen).sum())  # they ascend
        if end == begun:
            continue
        rows = slice(begun, end)
        part = (places[rows] - above[rows]).to(held.device)[None, :, None]
        upper = held[:, (above[rows] - first).to(held.device)]
        lower = held[:, (below[rows] - first).to(held.device)]
        yield upper + (lower - upper) * part
        begun = end
        if end < height:
            rest = min(int(above[end]), seen - 1)
            held, first = held[:, rest - first :], rest

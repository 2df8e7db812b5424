"""The losses of a step: on the device until somebody reads them, then by name on the host."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from d2_cityscapes.engine.step.nonfinite import GRADIENTS, PREDICTIONS, Trouble

__all__ = ["StepLosses", "files_of"]


class StepLosses:
    """The losses of the batches of one step on one rank, and where they come from.

    Attributes:
        iteration: of the step.
        data_time: seconds that it waited for its batches.
    """

    def __init__(self, iteration: int) -> None:
        self.iteration, self.data_time = iteration, 0.0
        self._files: list[tuple[str, ...]] = []
        self._names: list[list[str]] = []
        self._values: list[Tensor] = []
        self._losses: list[dict[str, float]] = []

    def add(self, data: Any, losses: dict[str, Tensor]) -> None:
        """Add a batch and its scalar losses; none where its predictions are not finite."""
        self._files.append(files_of(data))
        self._names.append(list(losses))
        self._values += [loss.detach().reshape(()) for loss in losses.values()]

    def values(self) -> Tensor:
        """(L,) all losses of all batches, on their device."""
        return torch.stack(self._values) if self._values else torch.zeros(0)

    def read(self, numbers: list[float]) -> None:
        """Take `values` from the host: what follows needs them."""
        row = iter(numbers)
        self._losses = [
            dict(zip(names, islice(row, len(names)), strict=True)) for names in self._names
        ]

    def trouble(self, *, gradients: bool = False) -> Trouble | None:
        """What is not finite.

        Args:
            gradients: those of this step are not, which counts where all losses are finite.
        """
        found = [self._not_finite(losses) for losses in self._losses]
        bad = [number for number, names in enumerate(found) if names]
        names = dict.fromkeys(name for number in bad for name in found[number])
        if not bad and gradients:
            bad, names = list(range(len(found))), {GRADIENTS: None}
        files = tuple(file for number in bad for file in self._files[number])
        return Trouble(tuple(names), files) if bad else None

    def means(self) -> dict[str, Tensor]:
        """The means over the batches by name, each a float64 scalar on the host."""
        names = dict.fromkeys(name for losses in self._losses for name in losses)
        sums = {n: math.fsum(losses.get(n, 0.0) for losses in self._losses) for n in names}
        return {
            name: torch.tensor(value / len(self._losses), dtype=torch.float64)
            for name, value in sums.items()
        }

    @staticmethod
    def _not_finite(losses: dict[str, float]) -> list[str]:
        if not losses:
            return [PREDICTIONS]
        return [name for name, value in losses.items() if not math.isfinite(value)]


def files_of(data: Any) -> tuple[str, ...]:
    """The images of a batch by file, where it tells."""
    named = (image for image in data if isinstance(image, dict) and "file_name" in image)
    return tuple(str(image["file_name"]) for image in named)

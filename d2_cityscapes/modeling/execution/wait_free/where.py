"""On which devices a step must not wait: all but the CPU, which has nothing to wait for.

On the CPU the parts of this package leave to Detectron2 whatever would come out otherwise: the
numbers that its samplers draw, and sums in another order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["as_on_cpu", "as_on_gpu", "is_queued", "random_keys"]

_everywhere: bool | None = None  # what holds for all devices; None for what each is


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """The CPU computes and draws as a GPU does, and both with the numbers of the CPU's generator.

    For tests and comparisons: from the same seed, a CPU and a GPU then sample the same.
    """
    with _set(True):
        yield


@contextlib.contextmanager
def as_on_cpu() -> Iterator[None]:
    """A GPU computes and draws as Detectron2 does, waits included.

    For comparisons: from the same seed, this package and Detectron2 then sample the same there.
    """
    with _set(False):
        yield


def is_queued(tensor: Tensor) -> bool:
    """Whether what is computed with a tensor runs behind the host, which would have to wait."""
    return tensor.device.type != "cpu" if _everywhere is None else _everywhere


def random_keys(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """float32 numbers, uniform in [0, 1)."""
    if _everywhere:
        return torch.rand(shape).to(device)
    return torch.rand(shape, device=device)


@contextlib.contextmanager
def _set(value: bool) -> Iterator[None]:
    global _everywhere
    before, _everywhere = _everywhere, value
    try:
        yield
    finally:
        _everywhere = before

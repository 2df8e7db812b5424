"""Who sees a real CUDA GPU: the tests marked `gpu`, and no other.

All others compute on the CPU, so that a number, a skip or a line of a log is the same on every
machine; `pytest --fake-gpu` runs them as on a machine with a GPU.
"""

from __future__ import annotations

import contextlib
import os
import unittest.mock
from collections.abc import Iterator

import torch

__all__ = ["FOUND", "hidden", "shown"]

FOUND = torch.cuda.is_available()
_ASKED = [(torch.cuda, "is_available", lambda: False), (torch.cuda, "device_count", lambda: 0)]
if hasattr(torch, "accelerator"):
    _ASKED.append((torch.accelerator, "is_available", lambda: False))
_TRUE = [getattr(owner, name) for owner, name, _ in _ASKED]


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """There is no GPU in the block: neither in this process nor in those that it starts.

    What this process sees was settled by `FOUND`, as the driver reads the environment once.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(unittest.mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""))
        if FOUND:
            for owner, name, value in _ASKED:
                stack.enter_context(unittest.mock.patch.object(owner, name, value))
        yield


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """The GPU is back, inside of `hidden`; in this process only."""
    with contextlib.ExitStack() as stack:
        for (owner, name, _), value in zip(_ASKED, _TRUE, strict=True):
            stack.enter_context(unittest.mock.patch.object(owner, name, value))
        yield

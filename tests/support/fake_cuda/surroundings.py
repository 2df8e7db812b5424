"""What else of PyTorch asks for devices: autocast, `_foreach` groups, the profiler, threads."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from fake_cuda.kernels import Kernels
from fake_cuda.places import CUDA

if TYPE_CHECKING:
    from fake_cuda.device import FakeCuda

__all__ = ["replacements"]


def replacements(gpu: FakeCuda) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, what to put there)."""
    yield from _autocast()
    yield from _groups(gpu)
    yield torch.profiler.profile, "__init__", _profile_of_the_cpu()
    run = threading.Thread.run

    def run_with_gpu(thread: threading.Thread) -> None:
        with Kernels(gpu):
            run(thread)

    yield threading.Thread, "run", run_with_gpu


def _autocast() -> Iterator[tuple[Any, str, Any]]:
    """That of CUDA is that of the CPU; `fake_cuda.autocast` gives it CUDA's lists."""
    autocast = torch.amp.autocast_mode.autocast
    enabled, dtype_of = torch.is_autocast_enabled, torch.get_autocast_dtype

    class Autocast(autocast):  # type: ignore[misc, valid-type]
        def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
            if str(device_type).partition(":")[0] == "cuda":
                device_type, dtype = "cpu", dtype or torch.float16
            super().__init__(device_type, dtype, enabled, cache_enabled)

    for owner in (torch, torch.amp, torch.amp.autocast_mode):
        yield owner, "autocast", Autocast
    yield torch.cuda.amp, "autocast", functools.partial(Autocast, "cuda")  # Detectron2's trainer
    yield torch, "is_autocast_enabled", lambda device_type="cuda": enabled("cpu")
    yield torch, "get_autocast_dtype", lambda device_type: dtype_of("cpu")


def _groups(gpu: FakeCuda) -> Iterator[tuple[Any, str, Any]]:
    grouped = torch.utils._foreach_utils._group_tensors_by_device_and_dtype

    def group(lists, with_indices=False):
        found = grouped(lists, with_indices)
        return {
            (CUDA if gpu.on_gpu(own[0][0][0]) else device, dtype): own
            for (device, dtype), own in found.items()
        }

    for owner in ("utils._foreach_utils", "optim.optimizer", "nn.utils.clip_grad"):
        yield sys.modules[f"torch.{owner}"], "_group_tensors_by_device_and_dtype", group


def _profile_of_the_cpu() -> Any:
    started = torch.profiler.profile.__init__

    @functools.wraps(started)
    def profile(self, *, activities=None, **kwargs):  # there are no kernels to record
        started(self, activities=[torch.profiler.ProfilerActivity.CPU], **kwargs)

    return profile

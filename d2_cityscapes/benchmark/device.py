"""Clock and memory of the device that is measured."""

from __future__ import annotations

import functools
import gc
import time
from typing import Any

import torch

from d2_cityscapes.engine import devices
from d2_cityscapes.engine.setup import ConfigError

__all__ = [
    "StepClock",
    "check_device",
    "default_device",
    "device_name",
    "free_memory",
    "is_gpu",
    "memory_peak",
    "memory_start",
    "synchronize",
    "warm_up",
]


def default_device() -> str:
    """ "cuda" where there is a GPU, else "cpu".

    Raises:
        ConfigError: there is one, and PyTorch cannot use it.
    """
    reason = devices.unusable_gpu()
    if reason:
        raise ConfigError(f"{reason}; CUDA_VISIBLE_DEVICES='' hides it")
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """
    Raises:
        ConfigError: neither the CPU nor a card that this machine has.
    """
    reason = devices.why_no_device(device)
    if not reason and torch.device(device).type not in ("cpu", "cuda"):
        reason = "use cpu, cuda or cuda:NUMBER; no other kind of device is measured"
    if reason:
        raise ConfigError(f"--device {device}: {reason}")


def is_gpu(device: str) -> bool:
    """Whether it is a CUDA device: "cuda", "cuda:1"."""
    return torch.device(device).type == "cuda"


def device_name(device: str) -> str:
    """The card, or "CPU"."""
    return devices.device_name(torch.device(device)) if is_gpu(device) else "CPU"


def synchronize(device: str) -> None:
    """Wait for all that the device has to do."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def free_memory() -> None:
    """Give back what nobody needs any more: of models, memory and loader processes."""
    gc.collect()  # models and their hooks hold each other
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class StepClock:
    """Seconds of each of some steps: by events on a GPU, so that the host waits at the end only."""

    def __init__(self, device: str) -> None:
        self._device = device
        synchronize(device)
        self._marks: list[Any] = []
        self.tick()

    def tick(self) -> None:
        """A step ends here, for the host: on a GPU, when all that it has asked for is done."""
        if not is_gpu(self._device):
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Of every step, once all are done."""
        synchronize(self._device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if is_gpu(self._device):
            return [start.elapsed_time(end) / 1000 for start, end in pairs]
        return [end - start for start, end in pairs]


def memory_start(device: str) -> tuple[int, int]:
    """Bytes allocated and reserved now; from here on `memory_peak` counts. (0, 0) on the CPU."""
    if not is_gpu(device):
        return 0, 0
    warm_up(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)


def memory_peak(device: str) -> tuple[int, int]:
    """Bytes allocated and reserved at the worst moment since `memory_start`. (0, 0) on the CPU."""
    if not is_gpu(device):
        return 0, 0
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)


@functools.cache
def warm_up(device: str) -> None:
    """Let cuBLAS and cuDNN take their workspaces, which would count for whoever comes first."""
    for dtype in (torch.float32, torch.float16):
        x = torch.ones(64, 64, device=device, dtype=dtype)
        weight = torch.ones(8, 8, 3, 3, device=device, dtype=dtype, requires_grad=True)
        image = (x @ x).reshape(1, 1, 64, 64).expand(1, 8, 64, 64)
        torch.nn.functional.conv2d(image, weight).sum().backward()
    synchronize(device)

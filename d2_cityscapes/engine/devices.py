"""The devices of MODEL.DEVICE: which there are, and why a GPU that is there cannot be used."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

__all__ = [
    "DEVICE_TYPES",
    "accelerator_in_use",
    "device_name",
    "device_runtime",
    "lacks_bfloat16",
    "lacks_kernels",
    "on_card",
    "peak_memory",
    "random_state_kept",
    "total_memory",
    "unusable_gpu",
    "why_no_device",
]

DEVICE_TYPES = ("cpu", "meta", "cuda", "mps", "xpu")  # meta: shapes alone, no memory
_USE = "use cpu, cuda or cuda:NUMBER (mps or xpu where PyTorch has them)"
# One entry for each NVIDIA GPU: device files, and the driver's own list, which a container without
# the device files shows too.
_TRACES = (("/dev", "nvidia[0-9]*"), ("/proc/driver/nvidia/gpus", "*"))
_HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that leave none
_WHEELS = "https://download.pytorch.org/whl/"


def why_no_device(name: str) -> str:
    """Why a MODEL.DEVICE cannot be used, for the end of a line; "" where it can.

    "cuda" without a number may be used by this on a machine without any GPU: see `unusable_gpu`.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        return _USE
    if device.type not in DEVICE_TYPES:
        return _USE
    runtime = device_runtime(device)
    if runtime is None:
        return ""
    if not _is_available(device.type):
        if device.type == "cuda":
            return ""
        return f"PyTorch {torch.__version__} finds no {device.type} device on this machine; {_USE}"
    count = max(runtime.device_count(), 1)
    if (device.index or 0) >= count:
        return f"this machine has {count} GPU{'s' if count > 1 else ''}, from {device.type}:0 on"
    return ""


def unusable_gpu() -> str:
    """What keeps PyTorch from an NVIDIA GPU of this machine, and what to do about it.

    "" where PyTorch can use it, where there is none, or where CUDA_VISIBLE_DEVICES hides all. Of
    the GPU it takes a device file, the driver's list, or nvidia-smi as a sign.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in _HIDDEN
    if hidden or torch.cuda.is_available():
        return ""
    found = _trace_of_gpu()
    if not found:
        return ""
    there = f"this machine has an NVIDIA GPU ({found}), but PyTorch {torch.__version__}"
    wheel = f"(pip install torch torchvision --index-url {_WHEELS}cuXXX"
    newest = "of at most the CUDA version that nvidia-smi shows)"
    if torch.version.cuda is None:
        return f"{there} is built without CUDA: install a build with it {wheel}, {newest}"
    return (
        f"{there}, built for CUDA {torch.version.cuda}, cannot use it: {_reason()}. Install a "
        f"newer driver, or PyTorch for an older CUDA {wheel}, {newest}; start a container with its "
        "GPUs (docker run --gpus all)"
    )


def lacks_kernels(device: torch.device) -> str:
    """Which GPU this PyTorch has no kernels for, and for which it has, as text; "" where it has.

    Wheels leave out old cards, which then fail at their first kernel, and the newest ones.
    """
    compiled = torch.cuda.get_arch_list() if device.type == "cuda" and not torch.version.hip else []
    if not compiled:
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    for name in compiled:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")  # sm_90a: with what later cards do not have
        own = (int(digits[:-1]), int(digits[-1]))
        if kind == "sm" and own[0] == major and own[1] <= minor:
            return ""
        if kind == "compute" and own <= (major, minor):  # compiled anew by the driver
            return ""
    return (
        f"{torch.cuda.get_device_name(device)} is sm_{major}{minor}, and PyTorch "
        f"{torch.__version__} is compiled for {', '.join(compiled)}"
    )


def lacks_bfloat16(device: torch.device) -> bool:
    """Whether it computes bfloat16 in float32 and rounds, as NVIDIA's cards before Ampere do."""
    if device.type != "cuda" or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) < (8, 0)


def device_name(device: torch.device) -> str:
    """Of the card where PyTorch knows it, e.g. "NVIDIA A100-SXM4-40GB"; else "cpu" or "mps"."""
    runtime: Any = device_runtime(device)
    if hasattr(runtime, "get_device_name"):
        return runtime.get_device_name(device)
    return device.type


def device_runtime(device: torch.device) -> ModuleType | None:
    """``torch.cuda``, ``torch.xpu`` or ``torch.mps``; None of the others."""
    return None if device.type in ("cpu", "meta") else getattr(torch, device.type, None)


def accelerator_in_use() -> Any:
    """``torch.cuda``, ``torch.xpu`` or ``torch.mps``, the first that has a device; else None."""
    return next((getattr(torch, kind) for kind in DEVICE_TYPES[2:] if _is_available(kind)), None)


def peak_memory(device: torch.device) -> tuple[int, int] | None:
    """Most bytes that tensors have held, and that PyTorch has; None where it does not count."""
    runtime: Any = device_runtime(device)
    if not hasattr(runtime, "max_memory_reserved"):
        return None
    return runtime.max_memory_allocated(device), runtime.max_memory_reserved(device)


def total_memory() -> int:
    """Bytes of the current card, where `peak_memory` counts."""
    runtime = accelerator_in_use()
    return runtime.get_device_properties(runtime.current_device()).total_memory


@contextlib.contextmanager
def on_card(device: torch.device) -> Iterator[None]:
    """Make a card with a number the current one of this thread, and then the one before.

    What asks for memory, random states or a place without naming a card then means this one, and
    no context of 300 MB is made on another.
    """
    runtime: Any = device_runtime(device)
    if device.index is None or not hasattr(runtime, "device"):
        yield
        return
    with runtime.device(device.index):
        yield


@contextlib.contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Put the random generator of a device, and torch's on the CPU, back as they were."""
    runtime: Any = device_runtime(device)
    place = () if device.type == "mps" else (device,)  # there is one
    own = None if runtime is None else runtime.get_rng_state(*place)
    with torch.random.fork_rng([]):
        try:
            yield
        finally:
            if own is not None:
                runtime.set_rng_state(own, *place)


def _is_available(kind: str) -> bool:
    if kind == "mps":
        return torch.backends.mps.is_available()
    runtime = getattr(torch, kind, None)
    return runtime is not None and runtime.is_available()


def _trace_of_gpu() -> str:
    """Where a GPU was seen; "" where none was."""
    for folder, pattern in _TRACES:
        with contextlib.suppress(OSError):
            for path in sorted(Path(folder).glob(pattern)):
                return str(path)
    program = shutil.which("nvidia-smi")  # alone in Windows and its Linux
    if program is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            ran = subprocess.run([program, "-L"], capture_output=True, timeout=20, text=True)
            if ran.returncode == 0 and ran.stdout.strip():
                return ran.stdout.strip().splitlines()[0].partition(" (UUID")[0]
    return ""


def _reason() -> str:
    """What PyTorch says, up to its advice."""
    try:
        torch.cuda.init()
    except Exception as error:  # RuntimeError, AssertionError, and what extensions raise
        first = " ".join(str(error).split())
        return first.partition(" Please ")[0].rstrip(". ")
    return "it finds no device"

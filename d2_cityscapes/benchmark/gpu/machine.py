"""The card and what is around it; and what a check needs of them before it starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from d2_cityscapes.benchmark.comparison import machine
from d2_cityscapes.benchmark.device import check_device, device_name
from d2_cityscapes.benchmark.gpu.settings import GpuCheck
from d2_cityscapes.engine.devices import lacks_kernels, unusable_gpu
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import check_folder
from d2_cityscapes.memory import available_memory

__all__ = ["check_machine", "machine_facts"]

_GIB = 2**30
# GiB: disk for scenes and checkpoints; memory of the host for the processes of two loaders
_DISK, _MEMORY, _CARD = 3.0, 8.0, 6.0
_DISK_TINY, _MEMORY_TINY = 0.5, 2.0
_PACKAGE = Path(__file__).resolve().parents[3]


def check_machine(check: GpuCheck) -> list[str]:
    """Refuse what cannot be measured on.

    Returns:
        Lines about what may disturb the figures.

    Raises:
        D2CityscapesError: no GPU that PyTorch can use, or no room on the disk or in memory.
    """
    check_device(check.device)
    if not check.gpu and not check.tiny:
        raise D2CityscapesError("--device cpu takes hours at full size: give --tiny too")
    lines = _check_card(check) if check.gpu else []
    check_folder(check.output)
    existing = next(p for p in (check.output.resolve(), *check.output.resolve().parents)
                    if p.exists())  # fmt: skip
    disk, memory = shutil.disk_usage(existing).free, available_memory()
    for what, free, needed in (
        (f"{check.output}: the disk", disk, _DISK_TINY if check.tiny else _DISK),
        ("the memory of this machine", memory, _MEMORY_TINY if check.tiny else _MEMORY),
    ):
        if free is not None and free < needed * _GIB:
            raise D2CityscapesError(
                f"{what} has {free / _GIB:.1f} GiB free, and the check needs {needed:g}: make room "
                "or try --tiny"
            )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not check.tiny and cores is not None and cores < check.workers:
        lines.append(
            f"{check.workers} loader processes on {cores} cores: --workers {cores} is less"
        )
    return lines


def machine_facts(check: GpuCheck) -> dict[str, Any]:
    """Card, driver, CUDA, versions and commit, for the report."""
    facts: dict[str, Any] = {"device": device_name(check.device), "commit": _commit()}
    if check.gpu:
        memory = torch.cuda.get_device_properties(torch.device(check.device)).total_memory
        facts |= {
            "memory_gib": round(memory / _GIB, 1),
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts | machine()


def _check_card(check: GpuCheck) -> list[str]:
    if not torch.cuda.is_available():
        reason = unusable_gpu() or "PyTorch finds no NVIDIA GPU on this machine"
        raise D2CityscapesError(f"{reason}; --device cpu --tiny tries the check itself")
    device = torch.device(check.device)
    missing = lacks_kernels(device)
    if missing:
        raise D2CityscapesError(f"--device {check.device}: {missing}; install another PyTorch")
    free, total = (x / _GIB for x in torch.cuda.mem_get_info(device))
    if not check.tiny and free < _CARD:
        raise D2CityscapesError(
            f"{device_name(check.device)} has {free:.1f} of {total:.1f} GiB free; the check needs "
            f"{_CARD:g}: end what else runs on it"
        )
    if total - free > 1.0:
        return [f"{total - free:.1f} GiB of the card are taken: is something else running on it?"]
    return []


def _driver() -> str:
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else "unknown"


def _commit() -> str:
    """Of the checkout, "+" for one with changes; "" where the package is installed."""
    if not (_PACKAGE / ".git").exists():
        return ""
    commit = _output("git", "-C", str(_PACKAGE), "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", str(_PACKAGE), "status", "--porcelain", "-uno")
    return commit + ("+" if commit and changed else "")


def _output(*command: str) -> str:
    """What a program says; "" where it is missing or fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return ran.stdout.strip()
    return ""

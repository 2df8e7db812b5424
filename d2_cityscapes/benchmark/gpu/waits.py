"""Host waits, kernels and memory of a training step at full size, by PyTorch's own counts.

The docs state what a pretended device counts; here is what a real one says. PyTorch reports a wait
where an operation synchronizes, but not each copy of memory that is not pinned.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from d2_cityscapes.benchmark.device import memory_peak, memory_start, synchronize
from d2_cityscapes.benchmark.gpu.models import FAMILIES, Case, start_state
from d2_cityscapes.benchmark.gpu.scenes import FULL
from d2_cityscapes.benchmark.gpu.settings import GpuCheck
from d2_cityscapes.benchmark.gpu.tasks import Finding, Found, Task
from d2_cityscapes.benchmark.trainers import FAST, amp
from d2_cityscapes.data.loader import build_train_loader
from d2_cityscapes.engine.profiling import export_trace, gpu_intervals
from d2_cityscapes.engine.step.prefetch import map_tensors

__all__ = ["counted_waits", "waits"]

_STEPS = 3  # before the counted one
_SAID = "synchronizing CUDA operation"
_GIB = 2**30
_COUNTED = (
    "Mask R-CNN, k-means anchors (stage 3)", "panoptic, MiniDL (stage 4)", "DeepLabv3 (stage 0)",
)  # fmt: skip
# Waits and GiB of live tensors of a step of four images of 1024 x 2048 in bfloat16, counted on a
# pretended device: docs/benchmarks.md.
_STATED = {_COUNTED[0]: (4, 5.81), _COUNTED[1]: (4, 7.27), _COUNTED[2]: (0, 7.79)}
_PACKAGES = ("d2_cityscapes", "detectron2")


def waits(check: GpuCheck, _: Found) -> Iterator[Task]:
    """In bfloat16, as configs and options of speed have it, and as slow as stock."""
    if not check.gpu:
        return
    for family in _COUNTED:
        fast = () if "DeepLab" in family else FAST
        stated = None if check.tiny else _STATED[family]
        yield f"{family}: bfloat16, fast", partial(_count, check, family, fast, stated)
    plain, options = _COUNTED[0], ("MODEL.WAIT_FREE", "False")
    yield f"{plain}: bfloat16, waiting as stock", partial(_count, check, plain, options, None)


def _count(
    check: GpuCheck, family: str, options: tuple[str, ...], stated: tuple[int, float] | None
) -> Finding:
    config = FAMILIES[family]
    before, _ = memory_start(check.device)

    def build(device: str, state: Any) -> Case:
        return Case(
            check, config, *amp("bfloat16"), *options, device=device, state=state,
            size=check.full_size, batch=check.batch, dataset=FULL,
        )  # fmt: skip

    small = Case(check, config, device="cpu", state=None)
    state = start_state(check, config, next(iter(build_train_loader(small.cfg))))
    case = build(check.device, state)
    batch = map_tensors(lambda x: x.to(check.device), next(iter(build_train_loader(case.cfg))))
    step = case.training_step(batch)
    for _ in range(_STEPS):
        step()
    peak = (memory_peak(check.device)[0] - before) / _GIB
    synchronize(check.device)
    with counted_waits() as lines:
        step()
    kernels = _kernels(step, check.device)
    found = {
        "waits": sum(lines.values()),
        "lines": dict(lines.most_common()),
        "peak_gib": peak,
        "kernels": kernels,
        "stated": stated,
    }
    text = f"{found['waits']} waits, peak {peak:.2f} GiB, {kernels or 'no'} kernels seen"
    if stated is not None:
        text += f" (the docs: {stated[0]} waits, {stated[1]:.2f} GiB)"
    return Finding(text, found)


@contextlib.contextmanager
def counted_waits() -> Iterator[collections.Counter[str]]:
    """Counts operations for which the host waits, by the line of code that asked for them."""
    lines: collections.Counter[str] = collections.Counter()

    def note(message: Any, *args: Any, **kwargs: Any) -> None:
        if _SAID in str(message):
            lines[_line_of_code()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lines
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _line_of_code() -> str:
    """The innermost line of this package or of Detectron2, e.g. detectron2/layers/nms.py:20."""
    frame = sys._getframe(2)
    while frame is not None:
        for package in _PACKAGES:
            _, inside, path = frame.f_code.co_filename.rpartition(f"/{package}/")
            if inside and frame.f_code.co_filename != __file__:
                return f"{package}/{path}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _kernels(step: Any, device: str) -> int | None:
    """Kernels of one step; None where the profiler sees none."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step()
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json.gz"
        export_trace(profiler, path)
        return len(gpu_intervals(path)) or None

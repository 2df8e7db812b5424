"""How fast a training runs, in every log line, in metrics.json and in TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, EventStorage, get_event_storage

from d2_cityscapes.engine.devices import peak_memory, total_memory

__all__ = ["ProgressHook", "ProgressPrinter", "progress_text"]

_MIB = 2**20


class ProgressHook(HookBase):
    """Puts the scalars that say how fast the training is, as means over the last steps.

    * iterations_per_second: optimizer steps.
    * images_per_second: of all processes, SOLVER.ACCUMULATE_STEPS batches a step.
    * data_share: the part of the time of a step, 0 to 1, that it waited for its batches.
    * gpu_memory_mb: most memory that tensors have held at once so far, MiB; on a GPU only.

    They follow from what Detectron2 measures: "time" of its `IterationTimer`, which leaves out the
    first steps, and "data_time" of the step. The hook has its place right behind that timer, in the
    first process, which alone has them.

    Args:
        images: in a step, of all processes.
        window: how many steps a mean is over. It is no median, which would hide a loader that all
            steps wait for in turn.
    """

    def __init__(self, images: int, *, window: int = 20) -> None:
        self._images, self._window = images, window

    def after_step(self) -> None:
        storage = self.trainer.storage
        seconds = self._last(storage, "time")
        total = sum(seconds.values())
        if storage.iter not in seconds or total <= 0:
            return
        # of the newest steps it may not have arrived yet, see `TrainingStep`
        waited = self._last(storage, "data_time")
        known = sum(seconds[step] for step in seconds.keys() & waited.keys())
        waiting = sum(waited[step] for step in seconds.keys() & waited.keys())
        found = {
            "iterations_per_second": len(seconds) / total,
            "images_per_second": len(seconds) * self._images / total,
            "data_share": min(waiting / known, 1.0) if known else 0.0,
        }
        device = next(self.trainer.model.parameters()).device
        memory = peak_memory(device)
        if memory is not None:
            found["gpu_memory_mb"] = memory[0] / _MIB
        storage.put_scalars(**found, smoothing_hint=False)

    def _last(self, storage: EventStorage, name: str) -> dict[int, float]:
        """The last values of a scalar by iteration."""
        if name not in storage.histories():
            return {}
        values = storage.history(name).values()[-self._window :]
        return {iteration: value for value, iteration in values}


class ProgressPrinter(CommonMetricPrinter):
    """Detectron2's line of a training, with `progress_text` at its end."""

    logger: logging.Logger | logging.LoggerAdapter

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        super().__init__(max_iter, window_size)
        self.logger = _WithProgress(self.logger, {})


class _WithProgress(logging.LoggerAdapter):
    def process(
        self, msg: str, kwargs: MutableMapping[str, Any]
    ) -> tuple[str, MutableMapping[str, Any]]:
        progress = progress_text(get_event_storage())
        return "  ".join(part for part in (msg.rstrip(), progress) if part), kwargs


def progress_text(storage: EventStorage) -> str:
    """What `ProgressHook` put last, e.g. "5.1 it/s  20.4 images/s  data 3 %"; "" before that."""
    values = {name: value for name, (value, _) in storage.latest().items()}
    if "images_per_second" not in values:
        return ""
    parts = [
        f"{values['iterations_per_second']:.3g} it/s",
        f"{values['images_per_second']:.3g} images/s",
        f"data {100 * values['data_share']:.0f} %",
    ]
    if "gpu_memory_mb" in values:
        total = total_memory() / 2**30
        parts.append(f"gpu {values['gpu_memory_mb'] / 1024:.1f}/{total:.1f} GiB")
    return "  ".join(parts)

"""A torch profiler trace of some training steps."""

from __future__ import annotations

import gzip
import json
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

from detectron2.engine import HookBase
from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

from d2_cityscapes.engine.devices import accelerator_in_use
from d2_cityscapes.files import write_atomically

__all__ = ["ProfileHook", "covered", "export_trace", "gpu_intervals"]

logger = logging.getLogger(__name__)

_WAIT, _WARMUP = 1, 2  # steps before the recorded ones: without the profiler, and with it
_ROWS = 40  # operators in the table


class ProfileHook(HookBase):
    """Records some steps soon after the beginning of a training.

    One step passes without the profiler, which is the one that starts workers and libraries, and
    two warm it up. OUTPUT_DIR/profile then receives trace.json.gz, for chrome://tracing or
    ui.perfetto.dev, and operators.txt, the operators that took most time by themselves. Those of an
    earlier profile are replaced. Training goes on, at its usual speed. Where it ends before, the
    steps there were are written.

    Args:
        output: the folder.
        steps: how many to record.
    """

    def __init__(self, output: str | Path, steps: int) -> None:
        self._output = Path(output)
        self._steps = steps
        self._recorded = 0
        self._profiler: profile | None = None

    def before_train(self) -> None:
        self._profiler = profile(
            activities=supported_activities(),
            schedule=schedule(wait=_WAIT, warmup=_WARMUP, active=self._steps, repeat=1),
        )
        self._profiler.start()

    def after_step(self) -> None:
        if self._profiler is None:
            return
        accelerator = accelerator_in_use()
        if accelerator is not None:
            accelerator.synchronize()  # what this step has queued belongs to it
        self._recorded = self.trainer.iter + 1 - self.trainer.start_iter - _WAIT - _WARMUP
        ends = self.trainer.iter + 1 >= self.trainer.max_iter  # before the last evaluation
        if self._recorded == self._steps or ends:
            self._finish()
        else:
            self._profiler.step()

    def after_train(self) -> None:
        self._finish()  # where a step failed

    def _finish(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        if self._recorded < 1:
            logger.warning(
                "no profile: it begins after %d steps, and the training ended before",
                _WAIT + _WARMUP,
            )
            return
        export_trace(profiler, self._output / "trace.json.gz")
        beside = supported_activities() - {ProfilerActivity.CPU}
        order = "self_device_time_total" if beside else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=_ROWS)
        write_atomically(self._output / "operators.txt", [table.encode()])
        few = f" of the {self._steps} asked for" if self._recorded < self._steps else ""
        logger.info("profile of %d steps%s in %s", self._recorded, few, self._output)


def export_trace(profiler: profile, path: Path) -> None:
    """Write a Chrome trace, compressed, whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        write_atomically(path, [gzip.compress(plain.read_bytes(), compresslevel=6)])


def gpu_intervals(path: Path, kinds: Iterable[str] = ("kernel",)) -> list[tuple[float, float]]:
    """(start, end) in microseconds of what ran on the GPU.

    Args:
        path: a trace of `export_trace`.
        kinds: categories of the trace: "kernel", "gpu_memcpy", "gpu_memset".
    """
    wanted = set(kinds)
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    return [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") in wanted]


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (start, end) intervals, which may overlap."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length

"""Training steps beside stock Detectron2's: the same model, weights and images, data included.

Stock is Detectron2's `DefaultTrainer` on the PNG tree, ours is `Trainer` on the shards made of it.
Both are in one process and take turns. A turn begins with steps that are not timed: they use up the
batches that were prepared while the other side had its turn, and meanwhile the other side's workers
fill their queues and come to rest. So every timed step pays for its own data, and no worker of the
other side is at work.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from d2_cityscapes.benchmark.comparison import Comparison, compare, reported
from d2_cityscapes.benchmark.trainers import (
    Contender,
    TrainingBenchmark,
    build_contenders,
    check_same_work,
    datasets,
)
from d2_cityscapes.engine.profiling import covered, export_trace, gpu_intervals

__all__ = ["benchmark_training"]

_QUEUE = 2  # batches that a worker prepares in advance, torch's default
_Side = Mapping[str, Contender]


def benchmark_training(
    settings: TrainingBenchmark, *, report: Callable[[Sequence[Comparison]], None]
) -> list[Comparison]:
    """Run all comparisons; ``report`` gets each group of them as soon as it is measured.

    Raises:
        RuntimeError: the sides do not compute the same.
    """
    logging.getLogger("detectron2").setLevel(logging.INFO)  # else its trainer prints everything
    with datasets(settings), tempfile.TemporaryDirectory() as output:
        stock, ours = build_contenders(settings, output)
        check_same_work(settings, stock, ours)
        measures = (_speed, _memory, _gpu_busy)
        return reported((measure(settings, stock, ours) for measure in measures), report)


def _speed(settings: TrainingBenchmark, stock: _Side, ours: _Side) -> list[Comparison]:
    seconds: dict[str, list[float]] = {}
    for _ in range(settings.rounds):
        for name, contender in {**stock, **ours}.items():
            seconds.setdefault(name, []).append(_seconds_per_step(settings, contender))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    found = []
    for name in ours:
        peers = {peer: medians[peer] for peer in _peers(stock, name)}
        found += compare(f"training step, {settings.what}, {name}", "s", medians[name], peers)
        found += compare(
            f"training, {settings.what}, {name}", "images/s", settings.batch / medians[name],
            {peer: settings.batch / value for peer, value in peers.items()},
            higher_is_better=True,
        )  # fmt: skip
    return found


def _memory(settings: TrainingBenchmark, stock: _Side, ours: _Side) -> list[Comparison]:
    if not torch.cuda.is_available():
        return []
    found = []
    for name, contender in ours.items():
        for i, kind in enumerate(("allocated", "reserved")):
            peers = {peer: stock[peer].memory[i] / 2**30 for peer in _peers(stock, name)}
            measure = f"peak memory {kind}, {settings.what}, {name}"
            found += compare(measure, "GiB", contender.memory[i] / 2**30, peers)
    return found


def _gpu_busy(settings: TrainingBenchmark, stock: _Side, ours: _Side) -> list[Comparison]:
    if not torch.cuda.is_available():
        return []
    busy = {name: _busy_share(settings, contender) for name, contender in {**stock, **ours}.items()}
    found = []
    for name in ours:
        peers = {peer: busy[peer] for peer in _peers(stock, name)}
        measure = f"GPU busy, {settings.workers} workers, {settings.what}, {name}"
        found += compare(measure, "%", busy[name], peers, higher_is_better=True)
    return found


def _peers(stock: _Side, name: str) -> list[str]:
    """Full precision beside the same, mixed precision beside all of stock."""
    same = name.replace("ours", "stock")
    return list(stock) if "AMP" in name else [same]


def _seconds_per_step(settings: TrainingBenchmark, contender: Contender) -> float:
    contender.run(_settling(settings))
    started = time.perf_counter()
    contender.run(settings.steps)
    return (time.perf_counter() - started) / settings.steps


def _busy_share(settings: TrainingBenchmark, contender: Contender) -> float:
    """Percent of the time in which some kernel runs."""
    contender.run(_settling(settings))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        contender.run(settings.steps)
        seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json.gz"
        export_trace(profiler, path)
        return 100 * covered(gpu_intervals(path)) / 1e6 / seconds


def _settling(settings: TrainingBenchmark) -> int:
    """Steps that use up all batches that were prepared before; see the top."""
    return _QUEUE * settings.workers + 2 if settings.workers else 1

"""Contenders of a training benchmark, one after the other, each with the device to itself.

A turn builds a trainer with loader processes of its own, whose queues begin empty: after the first
steps, which are not timed, every step pays for its own data, and nobody else is at work or in the
memory of the device. A contender that fails or does not fit is one with few words in place of its
numbers; the others go on.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, DatasetMapper

from d2_cityscapes.benchmark.device import free_memory, is_gpu, memory_peak, memory_start
from d2_cityscapes.benchmark.proposals import Proposals
from d2_cityscapes.benchmark.trainers import (
    OURS,
    STOCK_TREE,
    Contender,
    Entry,
    TrainingBenchmark,
    build,
    start_weights,
)
from d2_cityscapes.data.mapper import CityscapesShardMapper
from d2_cityscapes.engine.profiling import covered, export_trace, gpu_intervals
from d2_cityscapes.memory import is_out_of_memory
from d2_cityscapes.modeling.execution.wait_free.where import as_on_cpu

__all__ = ["DOES_NOT_FIT", "DifferentWorkError", "Turn", "Turns", "in_one_line"]

DOES_NOT_FIT = "does not fit"
_WARM_UP = 2  # steps
# How far losses may lie apart, as parts of them; two readers differ in resizing, and by a pixel in
# boxes, and so in what proposals are drawn.
_TOLERANCE, _TOLERANCE_OF_ROUNDING, _TOLERANCE_OF_READING = 0.02, 0.1, 0.3
_GREY_LEVELS = 2.0  # mean difference of the pixels of two readers


class DifferentWorkError(RuntimeError):
    """Two contenders do not compute the same, so that their times say nothing."""


@dataclass(frozen=True)
class Turn:
    """What one turn has shown.

    Attributes:
        seconds: of every timed step.
        waited: mean seconds in which a step waited for its batch; None where it is not known.
        memory: bytes on the GPU, allocated and reserved, at the worst moment.
        busy: percent of the time in which some kernel runs on the GPU; None where nobody looked,
            or no kernel was seen.
        losses: of the first batch by name, in the first turn.
        different: in what its work is not that of the others, in one line; "" where it is theirs.
        trouble: why there is nothing of the above, in one line; "" where there is.
    """

    seconds: tuple[float, ...] = ()
    waited: float | None = None
    memory: tuple[int, int] = (0, 0)
    busy: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    different: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class Reference:
    """Losses of a contender by name, and what proposals they follow from."""

    entry: Entry
    losses: Mapping[str, float]
    proposals: Sequence[Proposals]


class Turns:
    """Gives contenders their turns; `datasets` has to be open.

    The first one whose losses are known is what the others have to equal (`reference`).
    """

    def __init__(self, settings: TrainingBenchmark) -> None:
        logging.getLogger("detectron2").setLevel(logging.INFO)  # else its trainer prints everything
        self.settings = settings
        self._output = tempfile.TemporaryDirectory()
        self._weights = start_weights(settings, self._output.name)
        self._images: tuple[list[dict], list[dict]] | None = None
        self.reference: Reference | None = None

    def take(self, entry: Entry, *, first: bool) -> Turn:
        """One turn of an entry; in its first one its work is compared, and profiled if asked."""
        turn = self._attempt(entry, first)
        free_memory()
        return turn

    def _attempt(self, entry: Entry, first: bool) -> Turn:
        try:
            return self._measure(entry, first)
        except Exception as error:  # its frames, and so its trainer, go with it
            if is_out_of_memory(error):
                return Turn(trouble=DOES_NOT_FIT)
            return Turn(trouble=in_one_line(error))

    def _measure(self, entry: Entry, first: bool) -> Turn:
        settings = self.settings
        before = memory_start(settings.device)
        contender = build(settings, entry, self._output.name, self._weights)
        losses, different = self._compare_work(contender) if first else ({}, "")
        contender.run(_WARM_UP)
        seconds, waited = contender.run(settings.steps)
        peak = memory_peak(settings.device)
        busy = None
        if first and settings.profile and is_gpu(settings.device):
            busy = _busy_share(contender, settings)
        allocated, reserved = (a - b for a, b in zip(peak, before, strict=True))
        return Turn(tuple(seconds), waited, (allocated, reserved), busy, losses, different)

    def _compare_work(self, contender: Contender) -> tuple[dict[str, float], str]:
        """Its losses on the same images and proposals as all others; what is different about them.

        Our side computes those of the images that it reads itself, too.
        """
        entry, found = contender.entry, {}
        try:
            if self._images is None:
                self._images = _images(contender, self.settings.batch)
            images, own_images = self._images
            given = self.reference.proposals if self.reference else ()
            with contender.tap.give(given), contender.tap.keep() as proposals, as_on_cpu():
                found = contender.losses(images)  # as_on_cpu: by the samples of Detectron2
            if self.reference is None:
                self.reference = Reference(entry, found, proposals)
            exact = not entry.tf32 and not self.reference.entry.tf32
            tolerance = _TOLERANCE if exact else _TOLERANCE_OF_ROUNDING
            expected = self.reference.losses
            compare_losses(entry.name, found, expected, tolerance)
            if entry.ours:
                own = {"total": sum(contender.losses(own_images).values())}
                total = {"total": sum(expected.values())}
                name = f"{entry.name}, images of shards"
                compare_losses(name, own, total, _TOLERANCE_OF_READING)
        except DifferentWorkError as error:
            return found, str(error)
        return found, ""


def compare_losses(
    name: str, found: Mapping[str, float], expected: Mapping[str, float], tolerance: float
) -> None:
    """
    Raises:
        DifferentWorkError: a loss is missing, or further away than `tolerance` times itself (or a
            tenth of their sum, if that is more).
    """
    scale = sum(expected.values())
    for loss, other in expected.items():
        own = found.get(loss)
        if own is None or not abs(own - other) <= tolerance * max(abs(other), 0.1 * scale):
            raise DifferentWorkError(f"{name}: {loss} is {own}, of the first {other}")


def _images(contender: Contender, batch: int) -> tuple[list[dict], list[dict]]:
    """A batch as each side reads it; the settings of reading are those of all contenders."""
    cfg = contender.trainer.cfg
    dicts = DatasetCatalog.get(OURS)[:batch]
    by_name = {Path(d["file_name"]).name: d for d in DatasetCatalog.get(STOCK_TREE)}
    mapper = DatasetMapper(cfg, True)
    images = [mapper(by_name[Path(d["file_name"]).name]) for d in dicts]
    own_images = [*map(CityscapesShardMapper(cfg, True), dicts)]
    for image, own in zip(images, own_images, strict=True):
        same_size = image["image"].shape == own["image"].shape
        if not same_size or _difference(image["image"], own["image"]) > _GREY_LEVELS:
            raise DifferentWorkError(f"{own['file_name']}: not the image that Detectron2 reads")
    return images, own_images


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


def _busy_share(contender: Contender, settings: TrainingBenchmark) -> float | None:
    """Percent of the time in which some kernel runs; None where the profiler sees none."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        seconds, _ = contender.run(settings.steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json.gz"
        export_trace(profiler, path)
        share = covered(gpu_intervals(path)) / 1e6 / max(sum(seconds), 1e-9)
    return 100 * share or None


def in_one_line(error: BaseException) -> str:
    """What an error says, with its kind and at most 200 characters."""
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), '')}"[:200]

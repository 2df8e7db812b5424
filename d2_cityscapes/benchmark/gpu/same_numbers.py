"""Losses and gradients of every family on the device, beside those of the CPU in float32."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from d2_cityscapes.benchmark.gpu.models import (
    FAMILIES,
    Case,
    State,
    Step,
    same_draws,
    start_state,
)
from d2_cityscapes.benchmark.gpu.scenes import COMPARED
from d2_cityscapes.benchmark.gpu.settings import GpuCheck
from d2_cityscapes.benchmark.gpu.tasks import Finding, Found, Task
from d2_cityscapes.benchmark.proposals import Proposals
from d2_cityscapes.benchmark.trainers import FAST, amp
from d2_cityscapes.data.loader import build_train_loader
from d2_cityscapes.engine.computing import tf32
from d2_cityscapes.engine.step.prefetch import Prefetcher, map_tensors

__all__ = ["FP32", "compare_steps", "same_numbers"]

FP32 = "float32, TF32 off"  # the comparisons of this name are within rounding
_PANOPTIC = "panoptic, MiniDL (stage 4)"  # which has every part


@dataclass(frozen=True)
class _Option:
    """KEY VALUE pairs, and how far losses may lie from those of the CPU in float32.

    Attributes:
        opts: on the device.
        tolerance: of losses, see `compare_steps`.
        on_cpu: KEY VALUE pairs for the CPU too: options that change what is drawn.
    """

    opts: tuple[str, ...]
    tolerance: float
    on_cpu: tuple[str, ...] = ()


_WAITING = ("MODEL.WAIT_FREE", "False")
_FP32, _FP16, _BF16 = 1e-3, 3e-2, 1e-1
_PRECISIONS = {
    FP32: _Option((), _FP32),
    "float16": _Option(amp("float16"), _FP16),
    "bfloat16": _Option(amp("bfloat16"), _BF16),
}
_OPTIONS = {
    "channels_last": _Option(("SOLVER.CHANNELS_LAST", "True"), _FP32),
    "activation checkpointing": _Option(
        ("MODEL.BACKBONE.ACTIVATION_CHECKPOINTING", "True"), _FP32
    ),
    "folded norms": _Option(("MODEL.RESNETS.FOLD_FROZEN_NORM", "True"), _FP32),
    "fused": _Option(("SOLVER.FUSED", "True"), _FP32),
    "accumulation": _Option(("SOLVER.ACCUMULATE_STEPS", "2"), _FP32),
    "waiting as stock": _Option(_WAITING, _FP32, on_cpu=_WAITING),
    "compile": _Option(("MODEL.COMPILE", "True"), 5e-3),
    "all speed options but compile, bfloat16": _Option(
        (
            *amp("bfloat16"), *FAST, "SOLVER.ACCUMULATE_STEPS", "2",
            "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING", "True",
        ),
        _BF16,
    ),
}  # fmt: skip


def same_numbers(check: GpuCheck, _: Found) -> Iterator[Task]:
    """Every family in every precision, every option of one family, and prefetched batches."""

    @functools.cache  # each is used for every precision
    def reference(family: str, *opts: str) -> _Reference:
        return _Reference(check, FAMILIES[family], opts)

    def task(family: str, option: _Option) -> Callable[[], Finding]:
        return lambda: _compare(check, FAMILIES[family], option, reference(family, *option.on_cpu))

    slow = () if check.gpu else ("float16", "compile")  # minutes on a CPU
    for precision in (name for name in _PRECISIONS if name not in slow):
        # float32 first: all families in it are worth more than one in everything
        for family in FAMILIES:
            yield f"{family}: {precision}", task(family, _PRECISIONS[precision])
    for name in (name for name in _OPTIONS if name not in slow):
        yield f"{_PANOPTIC}: {name}", task(_PANOPTIC, _OPTIONS[name])
    if check.gpu:
        yield "prefetched batches", lambda: _prefetched(check)


class _Reference:
    """A step on the CPU in float32, and what is needed to repeat it."""

    def __init__(self, check: GpuCheck, config: str, opts: tuple[str, ...]) -> None:
        with same_draws():
            first = Case(check, config, *opts, device="cpu", state=None)
            self.batch: list[dict] = next(iter(build_train_loader(first.cfg)))
            self.state: State = start_state(check, config, self.batch)
            case = Case(check, config, *opts, device="cpu", state=self.state)
            self.step: Step = case.step(self.batch)
            self.proposals: list[Proposals] = case.proposals


def _compare(check: GpuCheck, config: str, option: _Option, reference: _Reference) -> Finding:
    with same_draws(), tf32(False):
        case = Case(check, config, *option.opts, device=check.device, state=reference.state)
        found = case.step(reference.batch, reference.proposals)
    return compare_steps(found, reference.step, option.tolerance)


def compare_steps(found: Step, expected: Step, tolerance: float) -> Finding:
    """
    Args:
        found: numbers of a step by name.
        expected: those of another device.
        tolerance: how far each loss may lie from the other, as a part of it, or of a twentieth of
            all losses, if that is more. Norms may be five times as far.
    """
    total = sum(abs(x) for name, x in expected.items() if name.startswith("loss"))
    apart: dict[str, float] = {}
    for name, value in expected.items():
        is_loss = name.startswith("loss")
        scale = max(abs(value), 0.05 * total if is_loss else 1e-12)
        distance = abs(found.get(name, float("nan")) - value) / scale
        apart[name] = distance if is_loss else distance / 5
    # a number that is missing or not finite is further away than any
    worst = max(apart, key=lambda name: apart[name] if apart[name] < float("inf") else float("inf"))
    good = apart[worst] <= tolerance
    own = f"{found[worst]:.6g}" if worst in found else "none"
    return Finding(
        f"{len(apart)} numbers, furthest {worst}: {own} against {expected[worst]:.6g} "
        f"({apart[worst]:.1e} of {tolerance:.0e})",
        {
            "furthest": worst,
            "apart": apart[worst],
            "tolerance": tolerance,
            "found": found,
            "expected": expected,
        },
        good,
    )


def _prefetched(check: GpuCheck) -> Finding:
    """Sums of batches that were copied while the device is busy, against the plain loader's."""
    case = Case(
        check, FAMILIES[_PANOPTIC], "DATALOADER.NUM_WORKERS", "2", device=check.device, state=None,
        dataset=COMPARED,
    )  # fmt: skip
    device, number = check.device, 24
    side = 2048
    load = torch.rand(side, side, device=device)

    def sums(batches: Iterator[list[dict]]) -> list[torch.Tensor]:
        nonlocal load
        found = []
        for batch in itertools.islice(batches, number):
            for _ in range(5):  # so that a copy could come too late
                load = (load @ load).clamp(0, 1e-3)
            own: list[torch.Tensor] = []

            def add(x: torch.Tensor, own: list[torch.Tensor] = own) -> torch.Tensor:
                own.append(x.to(device).double().sum())
                return x

            map_tensors(add, batch)
            found.append(torch.stack(own))
        return [x.cpu() for x in found]

    expected = sums(iter(build_train_loader(case.cfg)))
    found = sums(iter(Prefetcher(build_train_loader(case.cfg), device)))
    good = all(a.equal(b) for a, b in zip(found, expected, strict=True))
    return Finding(f"{number} batches: {'equal' if good else 'other numbers'}", good=good)

"""Training steps beside stock Detectron2's: the same model, weights and images, data included.

Stock is Detectron2's `DefaultTrainer` on the PNG tree, ours is `Trainer` on the shards made of it.
They take turns, see `turns`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from d2_cityscapes.benchmark.comparison import Comparison, Value, compare
from d2_cityscapes.benchmark.device import is_gpu
from d2_cityscapes.benchmark.trainers import Entry, TrainingBenchmark, datasets, entries
from d2_cityscapes.benchmark.turns import DOES_NOT_FIT, Turn, Turns
from d2_cityscapes.errors import D2CityscapesError

__all__ = ["benchmark_training", "trouble_of", "turn_seconds"]

_GIB = 2**30


def benchmark_training(
    settings: TrainingBenchmark, *, report: Callable[[Sequence[Comparison]], None]
) -> list[Comparison]:
    """Let all contenders take their turns, and compare them.

    What was measured is reported however it ends. A contender that does not fit into the memory of
    the GPU is a row that says so.

    Args:
        settings: what is compared.
        report: gets all comparisons.

    Raises:
        D2CityscapesError: contenders that failed or do not compute the same; after ``report``.
    """
    everyone = entries(settings)
    taken: dict[str, list[Turn]] = {}
    comparisons: list[Comparison] = []
    with datasets(settings):
        turns = Turns(settings)
        try:
            for number in range(settings.rounds):
                for entry in everyone:
                    own = taken.setdefault(entry.name, [])
                    if not _problem(own):
                        own.append(turns.take(entry, first=number == 0))
        finally:
            comparisons = _comparisons(settings, everyone, taken)
            if comparisons:
                report(comparisons)
    problems = [
        f"{name}: {_problem(own)}"
        for name, own in taken.items()
        if _problem(own) not in ("", DOES_NOT_FIT)
    ]
    if problems:
        raise D2CityscapesError.of_many(problems, "the other comparisons were reported")
    return comparisons


def trouble_of(turns: Sequence[Turn]) -> str:
    """Why a contender has no numbers; "" where it has."""
    return next((turn.trouble for turn in turns if turn.trouble), "")


def _problem(turns: Sequence[Turn]) -> str:
    """Trouble, or other work, whose time says nothing."""
    return trouble_of(turns) or next((turn.different for turn in turns if turn.different), "")


def turn_seconds(turns: Sequence[Turn]) -> list[float]:
    """Mean seconds a step of each turn."""
    return [statistics.mean(turn.seconds) for turn in turns if turn.seconds]


def _comparisons(
    settings: TrainingBenchmark, everyone: Sequence[Entry], taken: Mapping[str, Sequence[Turn]]
) -> list[Comparison]:
    shown: list[tuple[str, str, Callable[[Sequence[Turn]], Value], bool]] = [
        ("training step", "s", _step_seconds, False),
        ("training", "images/s", lambda turns: settings.batch / _step_seconds(turns), True),
    ]
    if is_gpu(settings.device):
        shown.append(("peak memory allocated", "GiB", lambda turns: _peak(turns, 0), False))
        shown.append(("peak memory reserved", "GiB", lambda turns: _peak(turns, 1), False))
        if settings.profile:
            shown.append((f"GPU busy, {settings.workers} workers", "%", _busy, True))
    taken = {name: turns for name, turns in taken.items() if turns}
    found = []
    for what, unit, value, higher in shown:
        values = {name: _problem(turns) or value(turns) for name, turns in taken.items()}
        for name in (entry.name for entry in everyone if entry.ours and entry.name in values):
            peers = {peer: values[peer] for peer in _peers(name, everyone) if peer in values}
            measure = f"{what}, {settings.what}, {name}"
            found += compare(measure, unit, values[name], peers, higher_is_better=higher)
    return found


def _step_seconds(turns: Sequence[Turn]) -> float:
    return statistics.median(turn_seconds(turns))


def _peak(turns: Sequence[Turn], kind: int) -> float:
    return max(turn.memory[kind] for turn in turns) / _GIB


def _busy(turns: Sequence[Turn]) -> Value:
    found = [turn.busy for turn in turns if turn.busy is not None]
    return found[0] if found else "the profiler saw no kernel"


def _peers(name: str, everyone: Sequence[Entry]) -> list[str]:
    """Full precision beside the same, mixed precision beside all of stock."""
    stock = [entry.name for entry in everyone if not entry.ours]
    return stock if "AMP" in name else [name.replace("ours", "stock")]

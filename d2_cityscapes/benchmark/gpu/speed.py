"""Training steps at full size: ours beside stock Detectron2's, in turn, each alone on the card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace

from d2_cityscapes.benchmark.gpu.settings import GpuCheck
from d2_cityscapes.benchmark.gpu.tasks import Finding, Found, Row, Task
from d2_cityscapes.benchmark.trainers import Entry, TrainingBenchmark, amp, datasets
from d2_cityscapes.benchmark.turns import Turn, Turns

__all__ = ["OURS_BFLOAT16", "OURS_FLOAT16", "STOCK_AMP", "STOCK_FP32", "measured", "speed"]

STOCK_FP32, STOCK_TF32, STOCK_AMP = "stock fp32, TF32 off", "stock fp32, TF32 on", "stock AMP"
OURS_FLOAT16, OURS_BFLOAT16 = "ours float16", "ours bfloat16"
_PROFILED = (STOCK_AMP, OURS_FLOAT16, OURS_BFLOAT16)
_MAIN = 5  # contenders whose turns come first
_GIB = 2**30


def _entries() -> list[Entry]:
    """The first rows are worth most; ours has the speed options on, but for what its name says."""
    on = {
        "SOLVER.CHANNELS_LAST": "True",
        "SOLVER.FUSED": "True",
        "DATALOADER.PREFETCH": "True",
        "MODEL.RESNETS.FOLD_FROZEN_NORM": "True",
        "MODEL.WAIT_FREE": "True",
    }

    def ours(name: str, dtype: str, **other: str) -> Entry:
        options = on | {key.replace("__", "."): value for key, value in other.items()}
        pairs = (part for pair in options.items() for part in pair)
        return Entry(name, (*amp(dtype), *pairs), tf32=bool(dtype))

    return [
        Entry(STOCK_FP32, amp("")),
        Entry(STOCK_AMP, amp("float16"), tf32=True),
        ours(OURS_FLOAT16, "float16"),
        ours(OURS_BFLOAT16, "bfloat16"),
        Entry(STOCK_TF32, amp(""), tf32=True),
        ours("ours fp32, TF32 off", ""),
        ours("ours bfloat16, compile", "bfloat16", MODEL__COMPILE="True"),
        ours("ours bfloat16, not channels_last", "bfloat16", SOLVER__CHANNELS_LAST="False"),
        ours("ours bfloat16, no prefetch", "bfloat16", DATALOADER__PREFETCH="False"),
        ours("ours bfloat16, waiting as stock", "bfloat16", MODEL__WAIT_FREE="False"),
        ours(
            "ours bfloat16, checkpointing", "bfloat16",
            MODEL__BACKBONE__ACTIVATION_CHECKPOINTING="True",
        ),
    ]  # fmt: skip


def speed(check: GpuCheck, found: Found) -> Iterator[Task]:
    """A turn of everyone, then the next, of the first contenders before those of the others.

    One without numbers has one turn.
    """
    only_gpu = (STOCK_AMP, OURS_FLOAT16, f"{OURS_BFLOAT16}, compile")
    entries = [entry for entry in _entries() if check.gpu or entry.name not in only_gpu]
    settings = check.training
    with ExitStack() as stack:
        turns: list[Turns] = []  # one, as soon as there is something to do

        def taker() -> Turns:
            if not turns:
                stack.enter_context(datasets(settings))
                turns.append(Turns(settings))
            return turns[0]

        rounds = range(1, settings.rounds + 1)
        groups = (entries[:_MAIN], entries[_MAIN:])
        for number, entry in (
            (number, entry) for group in groups for number in rounds for entry in group
        ):
            first = found.get(_name(entry.name, 1))
            if number == 1 or not (first and first.trouble):
                yield _name(entry.name, number), _task(settings, entry, number, taker)


def measured(found: Found) -> dict[str, list[Turn]]:
    """The turns of each contender, by its name."""
    turns: dict[str, list[Turn]] = {}
    for name, row in found.items():
        turns.setdefault(name.rpartition(", turn ")[0], []).append(_turn(row))
    return turns


def _task(
    settings: TrainingBenchmark, entry: Entry, number: int, taker: Callable[[], Turns]
) -> Callable[[], Finding]:
    def run() -> Finding:
        profile = settings.profile and entry.name in _PROFILED
        turns = taker()
        turns.settings = replace(settings, profile=profile)
        turn = turns.take(entry, first=number == 1)
        if turn.trouble:
            return Finding(turn.trouble, asdict(turn), trouble=turn.trouble)
        mean = sum(turn.seconds) / len(turn.seconds)
        text = f"{mean:.3f} s a step, {settings.batch / mean:.2f} images/s"
        if turn.memory[0]:
            text += f", {turn.memory[0] / _GIB:.2f} GiB"
        if turn.different:
            text += f"; not the same losses: {turn.different}"
        return Finding(text, asdict(turn))

    return run


def _turn(row: Row) -> Turn:
    return Turn(**row.values) if row.values else Turn(trouble=row.trouble)


def _name(entry: str, number: int) -> str:
    return f"{entry}, turn {number}"

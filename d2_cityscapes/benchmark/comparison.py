"""Timing of contenders in turn, and the table of their ratios."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from d2_cityscapes.evaluation.results import package_versions
from d2_cityscapes.files import write_atomically, write_json

__all__ = [
    "Comparison",
    "Value",
    "as_markdown",
    "compare",
    "machine",
    "one_thread",
    "reported",
    "size_text",
    "time_in_turn",
    "write_comparisons",
]

Value = float | str  # a number, or in words why there is none


@dataclass(frozen=True)
class Comparison:
    """One quantity of ours beside a peer's, measured in the same run.

    Attributes:
        measure: what was measured.
        unit: unit of both values.
        ours: our value.
        peer: what it is compared with.
        theirs: the peer's value.
        ratio: how many times better ours is: above 1 is better for us; None where one of the two
            is no number, or the one that divides is 0.
    """

    measure: str
    unit: str
    ours: Value
    peer: str
    theirs: Value
    ratio: float | None


def compare(
    measure: str,
    unit: str,
    ours: Value,
    peers: Mapping[str, Value],
    *,
    higher_is_better: bool = False,
) -> list[Comparison]:
    """Our value beside that of each peer."""
    return [
        Comparison(
            measure,
            unit,
            ours,
            peer,
            theirs,
            _ratio(ours, theirs) if higher_is_better else _ratio(theirs, ours),
        )
        for peer, theirs in peers.items()
    ]


def _ratio(value: Value, other: Value) -> float | None:
    if isinstance(value, str) or isinstance(other, str) or other == 0:
        return None
    return value / other


def reported(
    groups: Iterable[list[Comparison]], report: Callable[[Sequence[Comparison]], None]
) -> list[Comparison]:
    """All comparisons; ``report`` gets each group of them as soon as it is measured."""
    comparisons: list[Comparison] = []
    for found in groups:
        if found:
            report(found)
        comparisons += found
    return comparisons


def size_text(size: Sequence[int]) -> str:
    """(512, 1024) is "512x1024"."""
    return "x".join(map(str, size))


def time_in_turn(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each contender over the rounds, in each of which every one runs once."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as the tools that it is compared with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, cores, and versions of the packages."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass  # another system than Linux
    return {"processor": model, "cores": os.cpu_count(), "versions": package_versions()}


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as a table."""
    lines = ["| measure | ours | peer | theirs | ratio |", "|---|---|---|---|---|"]
    lines += [
        f"| {c.measure} | {_shown(c.ours, c.unit)} | {c.peer} | {_shown(c.theirs, c.unit)} "
        f"| {'' if c.ratio is None else f'{c.ratio:.3g}x'} |"
        for c in comparisons
    ]
    return "\n".join(lines)


def _shown(value: Value, unit: str) -> str:
    return value if isinstance(value, str) else f"{value:.4g} {unit}"


def write_comparisons(
    path: Path, comparisons: Sequence[Comparison], *, command: str, settings: Mapping[str, Any]
) -> None:
    """Write them as JSON, and as Markdown beside it, with the machine and the command."""
    content = {
        "command": command,
        "settings": dict(settings),
        "machine": machine(),
        "comparisons": [asdict(c) for c in comparisons],
    }
    write_json(path, content)
    write_atomically(path.with_suffix(".md"), [as_markdown(comparisons).encode() + b"\n"])

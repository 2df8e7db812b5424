"""What a check has found, as Markdown for docs/benchmarks.md, and held against the bars."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from d2_cityscapes.benchmark.comparison import size_text
from d2_cityscapes.benchmark.gpu.same_numbers import FP32
from d2_cityscapes.benchmark.gpu.settings import GpuCheck
from d2_cityscapes.benchmark.gpu.speed import (
    OURS_BFLOAT16,
    OURS_FLOAT16,
    STOCK_AMP,
    STOCK_FP32,
    measured,
)
from d2_cityscapes.benchmark.gpu.tasks import Found
from d2_cityscapes.benchmark.training import trouble_of, turn_seconds
from d2_cityscapes.benchmark.turns import Turn

__all__ = ["Bar", "bars", "content", "markdown"]

_GIB = 2**30
_NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Bar:
    """A promise of this package, and what was found.

    Attributes:
        text: the promise.
        found: in words; "not measured" where it was not.
        met: None where it was not measured.
    """

    text: str
    found: str = _NOT_MEASURED
    met: bool | None = None


def bars(check: GpuCheck, found: Mapping[str, Found]) -> list[Bar]:
    """All bars, met or not, by what the parts have found; on the CPU that of the numbers alone.

    Args:
        check: what was checked.
        found: of each part by its name.
    """
    if not check.gpu:
        return [_rounding(found.get("numbers", {}))]
    turns = measured(found.get("speed", {}))
    fast = max(
        (name for name in (OURS_FLOAT16, OURS_BFLOAT16) if _rate(check, turns, name)),
        key=lambda name: _rate(check, turns, name) or 0.0,
        default="",
    )
    return [
        _faster(check, turns, fast, STOCK_FP32, 2.5),
        _faster(check, turns, fast, STOCK_AMP, 1.4),
        _lean(turns, fast),
        _busy(check, turns, fast),
        _rounding(found.get("numbers", {})),
    ]


def content(
    check: GpuCheck,
    facts: Mapping[str, Any],
    command: str,
    found: Mapping[str, Found],
    left: Sequence[str],
) -> dict[str, Any]:
    """All of it for JSON. `left` names the tasks for which no time was left."""
    return {
        "command": command,
        "machine": dict(facts),
        "settings": {name: str(value) for name, value in asdict(check).items()},
        "bars": [asdict(bar) for bar in bars(check, found)],
        "parts": {part: [asdict(row) for row in rows.values()] for part, rows in found.items()},
        "not_run": list(left),
    }


def markdown(
    check: GpuCheck,
    facts: Mapping[str, Any],
    command: str,
    found: Mapping[str, Found],
    left: Sequence[str],
) -> str:
    """A section for docs/benchmarks.md; arguments as of `content`."""
    return "\n".join(_lines(check, facts, command, found, left)) + "\n"


def _lines(
    check: GpuCheck,
    facts: Mapping[str, Any],
    command: str,
    found: Mapping[str, Found],
    left: Sequence[str],
) -> Iterator[str]:
    versions = facts["versions"]
    card = [str(facts["device"])]
    if check.gpu:
        card += [f"{facts['memory_gib']} GiB, driver {facts['driver']}, CUDA {facts['cuda']}"]
    card += [f"{name} {versions[name]}" for name in ("torch", "detectron2") if name in versions]
    card += [f"{facts['cores']} cores ({facts['processor']})"]
    card += [f"commit {facts['commit']}" if facts["commit"] else ""]
    yield f"## On one card: {facts['device']}"
    yield ""
    yield f"{', '.join(filter(None, card))}. Synthetic scenes, random weights. Written by"
    yield ""
    yield f"    {command}"
    yield ""
    held = [[bar.text, bar.found, _MET[bar.met]] for bar in bars(check, found)]
    yield from _table(["bar", "found", ""], held)
    turns = measured(found.get("speed", {}))
    if turns:
        size = f"{check.batch} x {size_text(check.full_size)} px"
        yield ""
        yield f"Training steps, {size}, data included, stock reads {check.stock}:"
        yield ""
        head = ["", "s a step (median, lowest to highest turn)", "images/s", "waits for data"]
        head += ["peak GiB, allocated / reserved", "GPU busy"]
        yield from _table(head, [_speed_row(check, name, own) for name, own in turns.items()])
    for part, title in _TITLES.items():
        rows = found.get(part, {})
        if rows:
            yield ""
            yield title
            yield ""
            shown = [[row.name, row.text, _GOOD[row.good]] for row in rows.values()]
            yield from _table(["", "found", ""], shown)
    for title, lines in _wait_lines(found.get("waits", {})):
        yield ""
        yield title
        yield ""
        yield from _table(["waits", "line"], ([str(n), f"`{line}`"] for line, n in lines.items()))
    if left:
        yield ""
        yield f"No time was left for: {'; '.join(left)}."


_MET = {True: "met", False: "**not met**", None: ""}
_GOOD = {True: "ok", False: "**FAIL**", None: ""}
_TITLES = {
    "numbers": "Losses, gradients and update of a step, beside the CPU's in float32:",
    "waits": "Host waits, kernels and peak memory of a training step:",
    "inference": "Prediction and evaluation:",
    "gate": "Short trainings on the card that have to learn, scored on the CPU too:",
}


def _table(head: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def _speed_row(check: GpuCheck, name: str, turns: Sequence[Turn]) -> list[str]:
    if trouble_of(turns):
        return [name, trouble_of(turns), "", "", "", ""]
    seconds = turn_seconds(turns)
    waited = [turn.waited for turn in turns if turn.waited is not None]
    memory = [max(turn.memory[i] for turn in turns) / _GIB for i in (0, 1)]
    busy = next((turn.busy for turn in turns if turn.busy is not None), None)
    steps = [x for turn in turns for x in turn.seconds]
    return [
        name,
        f"{statistics.median(steps):.3f}, {min(seconds):.3f} to {max(seconds):.3f}",
        f"{_rate(check, {name: turns}, name):.2f}",
        f"{100 * statistics.mean(waited) / statistics.mean(seconds):.0f} %" if waited else "",
        f"{memory[0]:.2f} / {memory[1]:.2f}" if check.gpu else "",
        "" if busy is None else f"{busy:.0f} %",
    ]


def _wait_lines(found: Found) -> Iterator[tuple[str, dict[str, int]]]:
    for row in found.values():
        if row.values.get("lines"):
            yield f"Where the host waits, {row.name}:", row.values["lines"]


def _rate(check: GpuCheck, turns: Mapping[str, Sequence[Turn]], name: str) -> float | None:
    own = turns.get(name, ())
    if not own or trouble_of(own):
        return None
    return check.batch / statistics.median(turn_seconds(own))


def _faster(
    check: GpuCheck, turns: Mapping[str, Sequence[Turn]], fast: str, peer: str, bar: float
) -> Bar:
    text = f"training in mixed precision at least {bar}x {peer}"
    own, other = (_rate(check, turns, name) for name in (fast, peer))
    if own is None:
        return Bar(text)
    if other is None:
        return Bar(text, f"{peer}: {trouble_of(turns.get(peer, ())) or _NOT_MEASURED}")
    return Bar(text, f"{fast}: {own / other:.2f}x", own >= bar * other)


def _lean(turns: Mapping[str, Sequence[Turn]], fast: str) -> Bar:
    text = "Mask R-CNN in mixed precision in at most 8 GiB"
    peak = max((turn.memory[0] for turn in turns.get(fast, ())), default=0) / _GIB
    return Bar(text, f"{fast}: {peak:.2f} GiB", peak <= 8) if peak else Bar(text)


def _busy(check: GpuCheck, turns: Mapping[str, Sequence[Turn]], fast: str) -> Bar:
    text = "GPU busy at least 95 % with 8 workers"
    shares = [turn.busy for turn in turns.get(fast, ()) if turn.busy is not None]
    if not shares:
        return Bar(text)
    return Bar(text, f"{fast}: {shares[0]:.1f} % with {check.workers} workers", shares[0] >= 95)


def _rounding(numbers: Found) -> Bar:
    text = "losses as on the CPU, within the rounding of float32"
    rows = [row for row in numbers.values() if row.name.endswith(FP32) and row.values]
    if not rows:
        return Bar(text)
    worst = max(rows, key=lambda row: float(row.values["apart"]))
    apart = float(worst.values["apart"])
    good = all(row.good for row in numbers.values() if row.name.endswith(FP32))
    return Bar(text, f"at most {apart:.1e} apart ({worst.name.partition(':')[0]})", good)

"""Tasks of a check, run one after the other, and what they found, kept in a file of their part."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from d2_cityscapes.benchmark.device import free_memory
from d2_cityscapes.benchmark.turns import DOES_NOT_FIT, in_one_line
from d2_cityscapes.files import write_json
from d2_cityscapes.memory import is_out_of_memory

__all__ = ["Finding", "Found", "Part", "Row", "Task", "read_rows", "run_part"]


@dataclass(frozen=True)
class Finding:
    """What a task returns.

    Attributes:
        text: a few words for the screen.
        values: figures, in what JSON has; infinity and nan become their names.
        good: whether it is as it should be; None where it is a figure alone.
        trouble: why there are no figures; "" where there are.
    """

    text: str
    values: Mapping[str, Any] = field(default_factory=dict)
    good: bool | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Row(Finding):
    """A finding with the name of its task, and the seconds that it took."""

    name: str = ""
    seconds: float = 0.0


Task = tuple[str, Callable[[], Finding]]  # name and what to do
Found = dict[str, Row]  # what a part has found, by name of the task


@dataclass(frozen=True)
class Part:
    """Tasks of one kind.

    Attributes:
        name: of its file and on the command line.
        title: for people.
        seconds: what it is expected to take on a card; its share of the budget.
        judges: whether a task that fails means that something is wrong.
        tasks: from what was found so far, which goes on to grow, to the tasks in order.
    """

    name: str
    title: str
    seconds: float
    judges: bool
    tasks: Callable[[Found], Iterator[Task]]


def run_part(
    part: Part,
    file: Path,
    basis: Mapping[str, Any],
    *,
    deadline: float,
    say: Callable[[str], None],
) -> list[str]:
    """Run the tasks of a part that have not been run before, or have failed.

    Args:
        part: whose tasks.
        file: what it has found, written after every task.
        basis: what the findings depend on; those of another one are dropped.
        deadline: by `time.monotonic`; no task begins after it.
        say: prints a line.

    Returns:
        Names of the tasks for which no time was left.
    """
    found = read_rows(file, basis)
    left = []
    for name, task in part.tasks(found):
        before = found.get(name)
        if before is not None and not before.trouble and before.good is not False:
            continue
        if time.monotonic() >= deadline:
            left.append(name)
            continue
        found[name] = row = _run(name, task, judges=part.judges)
        write_json(file, {"basis": dict(basis), "rows": [asdict(x) for x in found.values()]})
        mark = {True: "ok", False: "FAIL", None: "--" if row.trouble else ""}[row.good]
        say(f"{mark:<5} {name:<58} {row.text}  ({row.seconds:.0f} s)")
    return left


def read_rows(file: Path, basis: Mapping[str, Any]) -> Found:
    """What a part has found on this basis, by name; nothing where it has not been run on it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["basis"] != dict(basis):
            return {}
        return {row["name"]: Row(**row) for row in content["rows"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _run(name: str, task: Callable[[], Finding], *, judges: bool) -> Row:
    started = time.monotonic()
    try:
        finding = task()
    except Exception as error:
        trouble = DOES_NOT_FIT if is_out_of_memory(error) else in_one_line(error)
        finding = Finding(trouble, good=False if judges else None, trouble=trouble)
    if torch.cuda.is_initialized():
        free_memory()
    seconds = round(time.monotonic() - started, 2)
    return Row(
        finding.text,
        _finite(finding.values),
        finding.good,
        finding.trouble,
        name=name,
        seconds=seconds,
    )


def _finite(value: Any) -> Any:
    """With words for the numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

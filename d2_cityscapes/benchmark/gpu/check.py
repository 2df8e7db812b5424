"""The whole check of a card: parts in the order of their worth, within a budget of time."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from d2_cityscapes.benchmark.gpu.gate import gate
from d2_cityscapes.benchmark.gpu.inference import inference
from d2_cityscapes.benchmark.gpu.machine import check_machine, machine_facts
from d2_cityscapes.benchmark.gpu.report import bars, content, markdown
from d2_cityscapes.benchmark.gpu.same_numbers import same_numbers
from d2_cityscapes.benchmark.gpu.scenes import datasets_of
from d2_cityscapes.benchmark.gpu.settings import GpuCheck
from d2_cityscapes.benchmark.gpu.speed import speed
from d2_cityscapes.benchmark.gpu.tasks import Found, Part, read_rows, run_part
from d2_cityscapes.benchmark.gpu.waits import waits
from d2_cityscapes.engine.devices import on_card
from d2_cityscapes.files import lock_folder, write_atomically, write_json

__all__ = ["JSON", "MARKDOWN", "PARTS", "run_check"]

JSON, MARKDOWN = "gpu_check.json", "gpu_check.md"
_SCENES = 20  # seconds
_PARTS = (  # name, title, seconds on a 24 GB card, whether a failure means that something is wrong
    ("numbers", "the same numbers as on the CPU", 140, True, same_numbers),
    ("speed", "training steps beside stock Detectron2", 260, False, speed),
    ("waits", "host waits, kernels, memory", 60, False, waits),
    ("inference", "prediction and evaluation", 40, False, inference),
    ("gate", "short trainings that have to learn", 80, True, gate),
)
PARTS = tuple(name for name, *_ in _PARTS)


def run_check(
    check: GpuCheck, *, parts: Sequence[str] = PARTS, command: str, say: Callable[[str], None]
) -> bool:
    """Run the tasks that have not been run, and write `JSON` and `MARKDOWN` of all that were.

    Args:
        check: what is checked.
        parts: names of those to run; of the others, what was found before is reported.
        command: the command line, for the report.
        say: prints a line.

    Returns:
        Whether no comparison of numbers and no gate has failed. Bars of speed do not count.

    Raises:
        D2CityscapesError: this machine cannot be measured on, see `check_machine`.
    """
    deadline = time.monotonic() + check.budget
    for line in check_machine(check):
        say(f"note: {line}")
    facts = machine_facts(check)
    basis = _basis(check, facts)
    wanted = [part for part in _parts(check) if part.name in parts]
    if not check.tiny:
        most = min(_SCENES + sum(part.seconds for part in wanted), check.budget)
        say(f"{facts['device']}: about {most / 60:.0f} minutes; the same command goes on")
    left: list[str] = []
    with lock_folder(check.output), _quiet(), on_card(torch.device(check.device)):
        try:
            with datasets_of(check):
                for number, part in enumerate(wanted):
                    say(f"-- {part.title}")
                    own = _share(wanted[number:], deadline)
                    left += run_part(part, _file(check, part.name), basis, deadline=own, say=say)
        finally:  # what was found is reported, however it ends
            found = {name: read_rows(_file(check, name), basis) for name in PARTS}
            write_json(check.output / JSON, content(check, facts, command, found, left))
            text = markdown(check, facts, command, found, left)
            write_atomically(check.output / MARKDOWN, [text.encode()])
    for bar in bars(check, found):
        met = {True: "met", False: "NOT MET", None: ""}[bar.met]
        say(f"{bar.text}: {bar.found}  {met}")
    if left:
        say(f"no time was left for {len(left)} tasks: the same command goes on")
    return not any(row.good is False for rows in found.values() for row in rows.values())


def _parts(check: GpuCheck) -> list[Part]:
    return [
        Part(name, title, seconds, judges, partial(_tasks, kind, check))
        for name, title, seconds, judges, kind in _PARTS
    ]


def _share(parts: Sequence[Part], deadline: float) -> float:
    """When the first of the parts has to end, so that time is left for the others too."""
    now = time.monotonic()
    return now + (deadline - now) * parts[0].seconds / sum(part.seconds for part in parts)


def _tasks(kind: Callable[[GpuCheck, Found], Iterator], check: GpuCheck, found: Found) -> Iterator:
    return kind(check, found)


def _basis(check: GpuCheck, facts: dict[str, Any]) -> dict[str, Any]:
    """What findings are valid for."""
    kept = ("device", "commit", "driver", "cuda", "versions")
    settings = {name: getattr(check, name) for name in ("device", "tiny", "workers", "stock")}
    return {**{name: facts[name] for name in kept if name in facts}, "settings": settings}


def _file(check: GpuCheck, part: str) -> Path:
    return check.output / f"{part}.json"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Findings alone on the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

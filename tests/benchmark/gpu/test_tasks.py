"""Tasks are run once, in order, within a budget; what they found outlives whatever ends them."""

from __future__ import annotations

import json
import time

import pytest
import torch

from d2_cityscapes.benchmark.gpu.tasks import Finding, Part, read_rows, run_part

LATER = float("inf")


def part(tasks, *, judges=False):
    """A part of tasks {name: function}."""
    return Part("some", "some tasks", 1.0, judges, lambda found: iter(tasks.items()))


def test_the_same_call_goes_on(tmp_path):
    calls, file, basis = [], tmp_path / "some.json", {"commit": "a"}

    def second():
        calls.append("second")
        if calls.count("second") == 1:
            raise KeyboardInterrupt
        return Finding("2", {"x": 2})

    tasks = {"first": lambda: calls.append("first") or Finding("1"), "second": second}
    with pytest.raises(KeyboardInterrupt):
        run_part(part(tasks), file, basis, deadline=LATER, say=calls.append)
    assert list(read_rows(file, basis)) == ["first"]
    assert run_part(part(tasks), file, basis, deadline=LATER, say=lambda line: None) == []
    assert [call for call in calls if call in tasks] == ["first", "second", "second"]
    found = read_rows(file, basis)
    assert {name: row.values for name, row in found.items()} == {"first": {}, "second": {"x": 2}}
    assert found["second"].seconds >= 0
    assert read_rows(file, {"commit": "b"}) == {}  # another version has to find out by itself
    file.write_text("{")
    assert read_rows(file, basis) == {}


def test_no_task_begins_after_the_deadline(tmp_path):
    tasks = {"first": lambda: Finding(""), "second": lambda: Finding("")}
    left = run_part(
        part(tasks), tmp_path / "f.json", {}, deadline=time.monotonic() - 1, say=lambda line: None
    )
    assert left == ["first", "second"] and not (tmp_path / "f.json").exists()


@pytest.mark.parametrize("judges", [True, False])
def test_a_task_that_fails_is_a_row_and_is_tried_again(judges, tmp_path):
    def no_room():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def broken():
        raise ValueError("\nno such\nthing")

    tasks = {"large": no_room, "broken": broken, "last": lambda: Finding("fine")}
    lines, file = [], tmp_path / "some.json"
    for _ in range(2):
        run_part(part(tasks, judges=judges), file, {}, deadline=LATER, say=lines.append)
    found = read_rows(file, {})
    assert found["large"].trouble == "does not fit"
    assert found["broken"].trouble == "ValueError: no such"
    assert found["last"].trouble == "" and found["last"].good is None
    assert {row.good for row in (found["large"], found["broken"])} == {False if judges else None}
    assert len(lines) == 5
    assert json.loads(file.read_text())["rows"][2]["text"] == "fine"


def test_numbers_that_json_does_not_have(tmp_path):
    losses = {"losses": {"a": float("nan"), "b": 1.0}, "seconds": (float("inf"), 2.0)}
    tasks = {"overflow": lambda: Finding("", losses)}
    run_part(part(tasks), tmp_path / "f.json", {}, deadline=LATER, say=lambda line: None)
    (row,) = read_rows(tmp_path / "f.json", {}).values()
    assert row.values == {"losses": {"a": "nan", "b": 1.0}, "seconds": ["inf", 2.0]}

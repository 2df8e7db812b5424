"""Ratios, tables and files of a benchmark."""

from __future__ import annotations

import json

from d2_cityscapes.benchmark.comparison import (
    Comparison,
    as_markdown,
    compare,
    time_in_turn,
    write_comparisons,
)


def test_ratios_above_one_are_better_for_us():
    (time,) = compare("time", "s", 2.0, {"stock": 6.0})
    (rate,) = compare("rate", "images/s", 2.0, {"stock": 6.0}, higher_is_better=True)
    assert time == Comparison("time", "s", 2.0, "stock", 6.0, 3.0)
    assert rate.ratio == 1 / 3


def test_no_ratio_without_two_numbers():
    cases = [(0.0, 0.0), (1.0, 0.0), ("does not fit", 2.0), (2.0, "does not fit")]
    found = [compare("busy", "%", a, {"stock": b}, higher_is_better=True) for a, b in cases]
    assert [rows[0].ratio for rows in found] == [None] * 4
    assert "| busy | does not fit | stock | 2 % |  |" in as_markdown(found[2])
    assert compare("time", "s", 0.0, {"stock": 1.0})[0].ratio is None


def test_contenders_take_turns():
    calls = []
    seconds = time_in_turn(
        {"ours": lambda: calls.append("ours"), "stock": lambda: calls.append("stock")}, rounds=3
    )
    assert calls == ["ours", "stock"] * 3
    assert seconds.keys() == {"ours", "stock"} and all(s >= 0 for s in seconds.values())


def test_the_files_name_machine_and_command(tmp_path):
    found = compare("time", "s", 2.0, {"stock": 6.0, "other": 1.0})
    write_comparisons(tmp_path / "r.json", found, command="benchmark.py data", settings={"n": "1"})
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["command"] == "benchmark.py data" and content["settings"] == {"n": "1"}
    assert content["machine"]["cores"] >= 1 and "torch" in content["machine"]["versions"]
    assert [c["ratio"] for c in content["comparisons"]] == [3.0, 0.5]
    table = (tmp_path / "r.md").read_text()
    assert table.strip() == as_markdown(found)
    assert "| time | 2 s | stock | 6 s | 3x |" in table

"""What was found is held against the bars, and makes a section for the docs."""

from __future__ import annotations

import dataclasses

import pytest

from d2_cityscapes.benchmark.gpu import report
from d2_cityscapes.benchmark.gpu.same_numbers import FP32
from d2_cityscapes.benchmark.gpu.tasks import Row
from d2_cityscapes.benchmark.turns import Turn

FACTS = {
    "device": "Some Card", "memory_gib": 24.0, "driver": "600.1", "cuda": "13.0", "cores": 8,
    "processor": "Some CPU", "commit": "abc", "versions": {"torch": "2.14.1"},
}  # fmt: skip


def speed_rows(**turns: list[Turn]):
    rows = {}
    for name, own in turns.items():
        for number, turn in enumerate(own, 1):
            key = f"{NAMES[name]}, turn {number}"
            values = dataclasses.asdict(turn)
            rows[key] = Row("", values, trouble=turn.trouble, name=key)
    return rows


NAMES = {
    "stock": "stock fp32, TF32 off",
    "amp": "stock AMP",
    "half": "ours float16",
    "brain": "ours bfloat16",
}


def turn(seconds, *, gib=6, busy=None):
    return Turn((seconds, seconds), 0.1, (gib << 30, gib << 30), busy)


def numbers(apart, good=True):
    name = f"Panoptic FPN: {FP32}"
    return {name: Row("text", {"apart": apart}, good, name=name)}


def found_bars(check, **parts):
    return [(bar.found, bar.met) for bar in report.bars(check, parts)]


def test_bars_are_met_or_not(gpu_check_settings):
    rows = speed_rows(
        stock=[turn(2.0), turn(3.0)],  # 2.5 s
        amp=[turn(1.2)],
        half=[turn(1.25)],
        brain=[turn(0.8, gib=9, busy=96.0), turn(1.2, gib=9)],  # 1.0 s: the faster one of ours
    )
    assert found_bars(gpu_check_settings, speed=rows, numbers=numbers(2e-5)) == [
        ("ours bfloat16: 2.50x", True),
        ("ours bfloat16: 1.20x", False),
        ("ours bfloat16: 9.00 GiB", False),
        ("ours bfloat16: 96.0 % with 8 workers", True),
        ("at most 2.0e-05 apart (Panoptic FPN)", True),
    ]


def test_what_was_not_measured_is_neither(gpu_check_settings, cpu_check):
    assert found_bars(gpu_check_settings) == [("not measured", None)] * 5
    rows = speed_rows(stock=[Turn(trouble="does not fit")], half=[turn(1.0)])
    assert found_bars(gpu_check_settings, speed=rows)[:3] == [
        ("stock fp32, TF32 off: does not fit", None),
        ("stock AMP: not measured", None),
        ("ours float16: 6.00 GiB", True),
    ]
    assert found_bars(cpu_check, speed=rows, numbers=numbers("inf", good=False)) == [
        ("at most inf apart (Panoptic FPN)", False)
    ]


def test_the_section(gpu_check_settings):
    waits = Row("3 waits", {"lines": {"detectron2/layers/nms.py:20": 3}}, name="stage 3")
    parts = {
        "numbers": numbers(0.2, good=False),
        "speed": speed_rows(stock=[Turn(trouble="does not fit")], half=[turn(1.0, busy=90.0)]),
        "waits": {"stage 3": waits},
    }
    text = report.markdown(gpu_check_settings, FACTS, "python x.py", parts, ["learns: it"])
    for line in (
        "## On one card: Some Card",
        "Some Card, 24.0 GiB, driver 600.1, CUDA 13.0, torch 2.14.1, 8 cores (Some CPU), commit",
        "    python x.py",
        "| Mask R-CNN in mixed precision in at most 8 GiB | ours float16: 6.00 GiB | met |",
        "| stock fp32, TF32 off | does not fit |  |  |  |  |",
        "| ours float16 | 1.000, 1.000 to 1.000 | 2.00 | 10 % | 6.00 / 6.00 | 90 % |",
        f"| Panoptic FPN: {FP32} | text | **FAIL** |",
        "| 3 | `detectron2/layers/nms.py:20` |",
        "No time was left for: learns: it.",
    ):
        assert any(found.startswith(line) for found in text.splitlines()), line
    content = report.content(gpu_check_settings, FACTS, "python x.py", parts, [])
    assert [bar["met"] for bar in content["bars"]] == [None, None, True, False, False]
    assert content["parts"]["waits"][0]["text"] == "3 waits"


def test_a_turn_is_read_back(gpu_check_settings):
    rows = speed_rows(half=[turn(1.0), turn(3.0)])
    own = report.measured(rows)["ours float16"]
    assert [x.seconds for x in own] == [(1.0, 1.0), (3.0, 3.0)]
    assert report._rate(gpu_check_settings, {"ours float16": own}, "ours float16") == (
        pytest.approx(1.0)
    )

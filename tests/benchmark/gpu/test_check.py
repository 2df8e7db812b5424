"""The whole check, small, on the CPU: from no scene to the report, and on."""

from __future__ import annotations

import itertools
import json

import pytest

from d2_cityscapes.benchmark.gpu import check as module
from d2_cityscapes.benchmark.gpu.check import JSON, MARKDOWN, PARTS, run_check
from d2_cityscapes.benchmark.gpu.tasks import Finding

_QUICK = {
    "numbers": "semantic FPN: float32",
    "speed": "ours bfloat16, turn",
    "inference": "DeepLab",
}


def some(kind, wanted):
    """The tasks of a part that have a word in their name, one of them."""

    def tasks(check, found):
        return itertools.islice((task for task in kind(check, found) if wanted in task[0]), 1)

    return tasks


def test_some_tasks_of_the_parts(cpu_check, monkeypatch):
    parts = [(*part[:4], some(part[4], _QUICK.get(part[0], "nothing"))) for part in module._PARTS]
    monkeypatch.setattr(module, "_PARTS", parts)
    facts = module.machine_facts(cpu_check)  # the checkout may change meanwhile
    monkeypatch.setattr(module, "machine_facts", lambda check: facts)
    lines: list[str] = []
    assert run_check(cpu_check, command="python gpu_check.py", say=lines.append)
    content = json.loads((cpu_check.output / JSON).read_text())
    found = [row["name"] for rows in content["parts"].values() for row in rows]
    assert len(found) == 3 and all(any(word in name for name in found) for word in _QUICK.values())
    assert content["not_run"] == [] and [bar["met"] for bar in content["bars"]] == [True]
    assert "| ours bfloat16 |" in (cpu_check.output / MARKDOWN).read_text()
    said = len(lines)
    assert run_check(cpu_check, command="python gpu_check.py", say=lines.append)
    assert not any("images/s" in line for line in lines[said:])  # nothing was run again


def test_numbers_that_differ_fail_it_and_figures_do_not(cpu_check, monkeypatch):
    def wrong(check, found):
        yield "one", lambda: Finding("far away", good=False)

    def broken(check, found):
        yield "other", lambda: 1 / 0

    parts = [(*part[:4], some(broken, "")) for part in module._PARTS]
    monkeypatch.setattr(module, "_PARTS", parts)
    for judged, good in ((["speed", "waits"], True), (["gate"], False)):
        assert run_check(cpu_check, parts=judged, command="", say=lambda line: None) is good
    monkeypatch.setattr(module, "_PARTS", [(*module._PARTS[0][:4], wrong)])
    assert not run_check(cpu_check, parts=["numbers"], command="", say=lambda line: None)


def test_on_a_gpu(gpu_check_settings, fake_gpu, monkeypatch):
    parts = [(*part[:4], some(part[4], _QUICK["numbers"])) for part in module._PARTS]
    monkeypatch.setattr(module, "_PARTS", parts)
    assert run_check(gpu_check_settings, command="python gpu_check.py", say=lambda line: None)
    content = json.loads((gpu_check_settings.output / JSON).read_text())
    assert [bar["met"] for bar in content["bars"]] == [None] * 4 + [True]
    assert content["machine"]["device"] == "Fake GPU"
    assert (gpu_check_settings.output / MARKDOWN).read_text().startswith("## On one card: Fake GPU")


def test_each_part_has_its_share_of_the_time(cpu_check, monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: 100.0)
    parts = module._parts(cpu_check)
    shares = [module._share(parts[i:], 100.0 + 600) - 100 for i in range(len(parts))]
    assert 0 < shares[0] < 600 and shares[-1] == 600  # what is left is the last one's
    assert shares[0] == pytest.approx(600 * parts[0].seconds / sum(p.seconds for p in parts))


@pytest.mark.slow
def test_all_of_it(cpu_check):
    assert run_check(cpu_check, command="python gpu_check.py", say=print)
    content = json.loads((cpu_check.output / JSON).read_text())
    assert set(content["parts"]) == set(PARTS)
    rows = [row for part in content["parts"].values() for row in part]
    assert len(rows) > 25 and not [row for row in rows if row["trouble"]]

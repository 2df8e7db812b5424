"""kill -9 of a search and of its trials, and searches that share a study: nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from d2_cityscapes.search.run import run_search
from d2_cityscapes.search.space.plan_file import read_plan
from d2_cityscapes.search.study import load_search, open_search

SCRIPT = Path(__file__).parents[1] / "cheap_search.py"


@pytest.fixture
def begin(write_search, repository):
    """Start a search as a process of its own."""
    source = write_search(pruner={"name": "none"})

    def run(output_dir, storage, total, **environment) -> subprocess.Popen:
        environment |= os.environ | {"PYTHONPATH": str(repository)}
        command = [sys.executable, "-W", "ignore", SCRIPT, source, output_dir, storage]
        command += [total]
        return subprocess.Popen(
            [str(part) for part in command],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return run


def _wait_for(search: subprocess.Popen, text: str) -> str:
    for line in search.stdout:
        if text in line:
            return line
    raise AssertionError(f"ended without {text!r}")


def _finish(search: subprocess.Popen) -> str:
    output, _ = search.communicate(timeout=120)
    assert search.returncode == 0, output
    return output


def _trial_pid(folder: Path) -> int:
    """Of the process that made the last step in a trial's folder."""
    return int((folder / "steps.txt").read_text().split()[-1])


def test_killed_twice_it_has_six_trials_and_has_lost_none(
    begin, cheap_trial, write_search, monkeypatch, tmp_path
):
    """kill -9 of the search in the middle of its third trial, then of a trial."""
    out, storage = tmp_path / "out", f"sqlite:///{tmp_path}/study.db"
    search = begin(out, storage, 6, SEARCH_TEST_HANG="trial_0002")
    _wait_for(search, "trial 2 report 2")
    search.kill()
    search.wait()
    before = load_search(storage).study.trials
    assert [t.state.name for t in before] == ["COMPLETE", "COMPLETE", "RUNNING"]

    def say(line: str) -> None:
        if "trial 4 report 2" in line:
            os.kill(_trial_pid(out / "trial_0004"), signal.SIGKILL)

    monkeypatch.setenv("SEARCH_TEST_HANG", "trial_0004")
    plan = read_plan(write_search(pruner={"name": "none"}))
    again = open_search(plan, storage=storage, study_name="one")
    run_search(again, plan, total=6, output_dir=out, start=cheap_trial, say=say)

    trials = load_search(storage).study.trials
    states = Counter(t.state.name for t in trials)
    assert states == {"COMPLETE": 6, "FAIL": 2}
    assert [(t.params, t.value) for t in trials[:2]] == [(t.params, t.value) for t in before[:2]]
    by_number = {t.number: t for t in trials}
    for dead, heir in ((2, 3), (4, 5)):  # the next one goes on with the values, behind the step
        assert by_number[dead].state.name == "FAIL"
        assert by_number[dead].params == by_number[heir].params
        assert by_number[heir].user_attrs["continues"] == [dead]
        assert sorted(by_number[heir].intermediate_values) == [1, 2, 3, 4]
        lines = (out / f"trial_{heir:04d}/steps.txt").read_text().splitlines()
        steps = [line.split()[:2] for line in lines]
        starts = [int(number) for word, number in steps if word == "start"]
        assert starts[0] == 0 and starts[1] >= 2
        assert not (out / f"trial_{dead:04d}").exists()
    assert len({str(t.params) for t in trials if t.state.name == "COMPLETE"}) == 6


@pytest.mark.slow
def test_two_searches_share_a_study_on_postgresql(begin, tmp_path, postgresql):
    """As two machines would: each with a folder of its own, both creating the study."""
    folders = [tmp_path / "a", tmp_path / "b"]
    searches = [begin(folder, postgresql, 8, SEARCH_TEST_DELAY="0.1") for folder in folders]
    for search in searches:
        _finish(search)
    trials = load_search(postgresql, "one").study.trials
    states = Counter(t.state.name for t in trials)
    assert states["COMPLETE"] == 8 and set(states) <= {"COMPLETE", "FAIL"}
    shares = [len(list(folder.glob("trial_*"))) for folder in folders]
    assert min(shares) >= 1 and sum(shares) >= 8
    assert len({str(t.params) for t in trials}) == len(trials)

"""kill -9 of a search and of its trials, and searches that share a study: nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from d2_cityscapes.search.study import load_search

SCRIPT = Path(__file__).with_name("cheap_search.py")


@pytest.fixture
def begin(write_search, repository):
    """Start a search as a process of its own."""
    source = write_search(pruner={"name": "none"})

    def run(output_dir, storage, total, workers=1, delay=0.15) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(repository), "SEARCH_TEST_DELAY": str(delay)}
        command = [sys.executable, "-W", "ignore", SCRIPT, source, output_dir, storage]
        command += [total, workers]
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
    while not (folder / "steps.txt").exists():
        time.sleep(0.05)
    return int((folder / "steps.txt").read_text().split()[-1])


def test_killed_twice_it_has_six_trials_and_has_lost_none(begin, tmp_path):
    out, storage = tmp_path / "out", f"sqlite:///{tmp_path}/study.db"
    search = begin(out, storage, 6)
    _wait_for(search, "trial 2 report 2")  # kill -9 of the parent, in the middle of its third trial
    search.kill()
    search.wait()
    before = load_search(storage).study.trials
    assert [t.state.name for t in before] == ["COMPLETE", "COMPLETE", "RUNNING"]

    search = begin(out, storage, 6)
    _wait_for(search, "trial 4 report 2")  # and kill -9 of a trial
    os.kill(_trial_pid(out / "trial_0004"), signal.SIGKILL)
    _finish(search)

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
    searches = [begin(folder, postgresql, 8, delay=0.1) for folder in folders]
    for search in searches:
        _finish(search)
    trials = load_search(postgresql, "one").study.trials
    states = Counter(t.state.name for t in trials)
    assert states["COMPLETE"] == 8 and set(states) <= {"COMPLETE", "FAIL"}
    shares = [len(list(folder.glob("trial_*"))) for folder in folders]
    assert min(shares) >= 1 and sum(shares) >= 8
    assert len({str(t.params) for t in trials}) == len(trials)

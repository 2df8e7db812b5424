"""Trials shared by workers that may be gone: exactly as many as wanted, and none lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import optuna
import pytest
from optuna.trial import TrialState

from d2_cityscapes.search.space.sampling import FeasibleSampler
from d2_cityscapes.search.space.space import parse_space
from d2_cityscapes.search.trials.process import Outcome
from d2_cityscapes.search.trials.trial_queue import TrialQueue

SPACE = parse_space(
    {
        "A": {"type": "float", "low": 0.0, "high": 1.0},
        "B": {"type": "categorical", "choices": [["x"], ["y"]]},
    }
)


@pytest.fixture
def study(tmp_path) -> optuna.Study:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    sampler = FeasibleSampler(SPACE, name="random", startup_trials=0, seed=0)
    return optuna.create_study(storage=storage, sampler=sampler, direction="maximize")


@pytest.fixture
def queue(study):
    """Make a queue of another worker, which has found outcomes on its machine."""

    def make(total: int = 4, outcomes=None, heartbeat: float = 30.0) -> TrialQueue:
        return TrialQueue(
            study, SPACE, total=total, find_outcome=(outcomes or {}).get, heartbeat=heartbeat
        )

    return make


def _complete(value: float = 0.5) -> Outcome:
    return Outcome("complete", value, results={"segm AP": value})


@pytest.fixture
def dead_worker(monkeypatch):
    """A block in which this process has the pid of one that is gone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    class Block:
        def __enter__(self):
            monkeypatch.setattr(os, "getpid", lambda: gone.pid)

        def __exit__(self, *_):
            monkeypatch.undo()

    return Block()


def _states(study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_complete_and_pruned_trials_count(queue, study):
    q = queue(total=3)
    outcomes = [_complete(), Outcome("failed", reason="no memory"), Outcome("pruned"), _complete()]
    for outcome in outcomes:
        q.finish(q.next(), outcome)
    assert q.next() is None and q.finished() == 3
    assert _states(study) == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE"]
    assert study.trials[1].user_attrs["reason"] == "no memory"
    assert study.trials[1].values is None
    assert study.trials[0].user_attrs["results"] == {"segm AP": 0.5}


def test_running_trials_hold_their_places(queue):
    q = queue(total=2)
    first, second = q.next(), q.next()
    assert first.number == 0 and second.number == 1 and q.next() is None
    q.finish(first, Outcome("failed", reason="x"))
    assert q.next().number == 2


def test_many_workers_at_once_make_no_trial_too_many(queue, study, monkeypatch):
    names = iter("abcd")
    monkeypatch.setattr("d2_cityscapes.search.trials.trial_queue._machine", lambda: next(names))

    def work(q):
        while q.finished() < 5:
            trial = q.next()
            if trial is not None:
                q.finish(trial, _complete())

    threads = [threading.Thread(target=work, args=(queue(total=5),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = _states(study)
    assert states.count("COMPLETE") == 5 and set(states) <= {"COMPLETE", "FAIL"}
    for trial in study.trials:
        if trial.state == TrialState.FAIL:
            assert "not needed: there are 5" in trial.user_attrs["reason"]


def test_a_trial_of_a_dead_worker_is_continued(queue, study, dead_worker):
    with dead_worker:
        q = queue()
        trial = q.next()
        trial.report(0.25, 1)
    again = queue().next()
    assert _states(study) == ["FAIL", "RUNNING"]
    assert study.trials[0].user_attrs["reason"].startswith("interrupted: its worker is gone")
    assert again.params == trial.params and again.user_attrs["continues"] == [0]
    assert study.trials[1].intermediate_values == {1: 0.25}
    again.report(0.5, 2)


def test_an_outcome_that_nobody_told_is_told(queue, study, dead_worker):
    with dead_worker:
        q = queue()
        for _ in range(3):
            q.next()
    outcomes = {0: _complete(0.75), 1: Outcome("pruned"), 2: Outcome("failed", reason="no memory")}
    assert queue(outcomes=outcomes).next().number == 3
    assert _states(study) == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert study.best_value == 0.75
    assert study.trials[2].user_attrs["reason"] == "no memory"


def test_a_worker_elsewhere_is_waited_for_until_its_heart_stops(queue, study, monkeypatch):
    monkeypatch.setattr("d2_cityscapes.search.trials.trial_queue._machine", lambda: "elsewhere")
    away = queue(heartbeat=30.0)
    trial = away.next()
    monkeypatch.undo()
    here = queue(total=1)
    assert here.next() is None and _states(study) == ["RUNNING"]
    away.beat(trial, at=1.0)  # in 1970
    assert here.next().params == trial.params
    assert not away.beat(trial)  # it learns that the trial is not its own any more
    away.finish(trial, _complete())  # and changes nothing
    assert _states(study) == ["FAIL", "RUNNING"]


def test_a_trial_that_is_just_beginning_is_left_alone(queue, study, monkeypatch):
    """Another machine looks each time that something of it is written down."""
    monkeypatch.setattr("d2_cityscapes.search.trials.trial_queue._machine", lambda: "elsewhere")
    away = queue(total=1)
    monkeypatch.undo()
    write = optuna.Trial.set_user_attr

    def write_and_look(trial, key, value):
        write(trial, key, value)
        assert trial.number > 0 or away.next() is None

    monkeypatch.setattr(optuna.Trial, "set_user_attr", write_and_look)
    assert queue(total=1).next().number == 0
    assert _states(study) == ["RUNNING"]


def test_a_released_trial_goes_on_at_once(queue, study, monkeypatch):
    monkeypatch.setattr("d2_cityscapes.search.trials.trial_queue._machine", lambda: "elsewhere")
    away = queue()
    away.release(away.next())
    monkeypatch.undo()
    assert queue(total=1).next().user_attrs["continues"] == [0]


def test_one_of_this_process_number_is_gone_too(queue, study):
    """In a container the search may have the same pid each time."""
    queue().next()
    assert queue(total=1).next().user_attrs["continues"] == [0]


def test_a_trial_that_died_before_it_had_values(queue, study):
    study.ask()  # running, without values or a worker
    assert queue(total=1).next() is None  # it may have just begun
    assert queue(total=1, heartbeat=0.0).next().number == 1
    assert _states(study) == ["FAIL", "RUNNING"]
    assert "continues" not in study.trials[1].user_attrs


def test_a_killed_process_is_tried_three_times(queue, study):
    q = queue(total=1)
    killed = Outcome("interrupted", reason="killed by SIGKILL")
    params = []
    for _ in range(3):
        trial = q.next()
        params.append(trial.params)
        q.finish(trial, killed)
    assert params[0] == params[1] == params[2]
    assert q.next().params != params[0]
    assert _states(study) == ["FAIL", "FAIL", "FAIL", "RUNNING"]
    assert study.trials[1].user_attrs["continues"] == [0]
    assert study.trials[2].user_attrs["continues"] == [0, 1]
    assert "killed by SIGKILL, 3 times" in study.trials[2].user_attrs["reason"]


def test_trials_that_others_enqueue_are_taken(queue, study):
    study.enqueue_trial({"A": 0.125, "B": '["y"]'})
    assert SPACE.values(queue().next().params) == {"A": 0.125, "B": ["y"]}

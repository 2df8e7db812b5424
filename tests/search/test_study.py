"""Studies: found again, never mixed with another search, and errors in one line."""

from __future__ import annotations

import optuna
import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.space.plan_file import read_plan
from d2_cityscapes.search.study import build_pruner, check_study, load_search, open_search
from d2_cityscapes.search.trials.storage import open_storage, shown


@pytest.fixture(params=["sqlite", "journal"])
def storage(request, tmp_path) -> str:
    return f"{request.param}:///{tmp_path}/study.{request.param}"


def test_a_search_is_found_again(plan, storage):
    made = open_search(plan, storage=storage, study_name="one")
    trial = made.study.ask(made.space.distributions)
    made.study.tell(trial, 0.5)
    again = open_search(plan, storage=storage, study_name="one")
    assert again.study.user_attrs == made.study.user_attrs
    for name in ("one", None):
        search = load_search(storage, name)
        assert search.study.best_value == 0.5
        assert search.space.values(trial.params) == made.space.values(trial.params)
        assert search.space.is_feasible(trial.params)
        assert search.study.user_attrs["search"]["objective"]["metric"] == "AP"


def test_another_search_is_refused_and_nothing_changes(plan, storage, write_search, repository):
    made = open_search(plan, storage=storage, study_name="one")
    before = made.study.user_attrs
    lower = {"SOLVER.BASE_LR": {"type": "log", "low": 1e-5, "high": 1e-2}}
    others = [
        ({"space": lower, "constraints": []}, [], r"space: MODEL.FREEZE.MODULES is .* None here"),
        ({"constraints": []}, [], r"constraints: .* there, \[\] here"),
        ({"objective": {"metric": "AP50"}}, [], "objective: metric is AP there, AP50 here"),
        ({"budget": {"iterations": 5, "reports": 4}}, [], "iterations is 4 there, 5 here"),
        ({}, ["SOLVER.MOMENTUM", "0.5"], "SOLVER.MOMENTUM is 0.9 there, 0.5 here"),
        ({"base": str(repository / "configs/demo/stage1.yaml")}, [], "is another search"),
    ]
    for sections, opts, message in others:
        other = read_plan(write_search(**sections), opts)
        for call in (open_search, check_study):
            with pytest.raises(SearchError, match=message) as caught:
                call(other, storage=storage, study_name="one")
            assert "another --study-name" in str(caught.value)
    assert load_search(storage, "one").study.user_attrs == before
    open_search(read_plan(write_search(**others[0][0])), storage=storage, study_name="two")
    with pytest.raises(SearchError, match="no study None; it holds one, two"):
        load_search(storage)


def test_machines_may_differ(plan, storage, write_search):
    open_search(plan, storage=storage, study_name="one")
    same = read_plan(write_search(), ["MODEL.DEVICE", "cuda", "DATALOADER.NUM_WORKERS", "9"])
    open_search(same, storage=storage, study_name="one")


def test_a_study_of_others_is_left_alone(plan, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    other = optuna.create_study(storage=storage, study_name="one")
    other.add_trial(optuna.trial.create_trial(value=1.0))
    for call in (open_search, check_study):
        with pytest.raises(SearchError, match=r"'one' was not made by d2c search"):
            call(plan, storage=storage, study_name="one")
    assert other.user_attrs == {}


def test_a_study_whose_maker_was_killed_is_finished(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("d2_cityscapes.search.study._PATIENCE", 0.1)
    storage = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=storage, study_name="one", direction="maximize")
    assert "search" in open_search(plan, storage=storage, study_name="one").study.user_attrs


def test_checking_creates_nothing(plan, storage, tmp_path):
    before = sorted(tmp_path.iterdir())
    check_study(plan, storage=storage, study_name="one")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("study.db", "use sqlite:///FILE, postgresql://USER@HOST/NAME or journal:///FILE"),
        ("redis://localhost", "use sqlite:///FILE"),
        ("sqlite:////nowhere/at/all/study.db", "unable to open database file"),
        ("journal:////nowhere/at/all/study.log", "no such folder for the journal"),
        ("postgresql://me:secret@127.0.0.1:1/x", r"me:\*\*\*@127.0.0.1:1/x: cannot be used"),
    ],
)
def test_storages_that_cannot_be_reached(plan, url, message):
    pytest.importorskip("psycopg2")
    with pytest.raises(SearchError, match=message) as caught:
        check_study(plan, storage=url, study_name="one")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_files_of_something_else_are_left_as_they_are(plan, storage, tmp_path):
    path = next(iter([tmp_path / storage.rpartition("/")[2]]))
    path.write_bytes(b"a letter to my aunt\n" * 100)
    for call in (open_search, check_study):
        with pytest.raises(SearchError, match="cannot be used") as caught:
            call(plan, storage=storage, study_name="one")
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"a letter to my aunt\n" * 100


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SearchError, match=r"pip install 'd2_cityscapes\[postgresql\]'"):
        open_storage("postgresql://me@localhost/x")


def test_passwords_are_not_shown():
    assert shown("postgresql://me:a:b@host/x") == "postgresql://me:***@host/x"
    assert shown("sqlite:///a@b.db") == "sqlite:///a@b.db"


def _prunes(pruner, reports: list[float]) -> int | None:
    """The step at which a trial with these reports is pruned, after ten that got 1, 2, 3, 4."""
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for _ in range(10):
        trial = study.ask()
        for step in (1, 2, 3, 4):
            trial.report(step, step)
        study.tell(trial, 4.0)
    trial = study.ask()
    for step, value in enumerate(reports, start=1):
        trial.report(value, step)
        if trial.should_prune():
            return step
    return None


def test_pruners_count_in_reports():
    median = {"name": "median", "startup_trials": 5, "warmup_reports": 2}
    assert isinstance(build_pruner(median, reports=4), MedianPruner)
    assert _prunes(build_pruner(median, reports=4), [0, 0, 0, 0]) == 3
    assert _prunes(build_pruner(median, reports=4), [0, 0, 3, 0]) == 4
    assert _prunes(build_pruner({"name": "median"}, reports=4), [0, 0, 0, 0]) == 2
    assert _prunes(build_pruner(median | {"startup_trials": 11}, reports=4), [0] * 4) is None
    assert isinstance(build_pruner({"name": "none"}, reports=4), NopPruner)
    assert _prunes(build_pruner({"name": "none"}, reports=4), [0] * 4) is None
    hyperband = {"name": "hyperband", "min_reports": 1, "reduction_factor": 2}
    assert isinstance(build_pruner(hyperband, reports=4), HyperbandPruner)

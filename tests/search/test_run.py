"""Searches whose trials train nothing: they find what is planted, prune, fail, and add up."""

from __future__ import annotations

import os
import re
import signal
import threading

import pytest
import yaml

from d2_cityscapes.engine.key_effects import idle_keys
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.findings.best import write_best
from d2_cityscapes.search.findings.confirm import run_again
from d2_cityscapes.search.findings.confirm_table import ConfirmedTrial, top_trials
from d2_cityscapes.search.run import run_search
from d2_cityscapes.search.space.plan_file import read_plan
from d2_cityscapes.search.study import load_search, open_search
from d2_cityscapes.search.trials.folders import TrialFolders, read_job
from d2_cityscapes.search.trials.workers import Workers, worker_environments

LOW, HIGH = "MODEL.RPN.IOU_THRESHOLDS[0]", "MODEL.RPN.IOU_THRESHOLDS[1]"


@pytest.fixture
def search(tmp_path):
    """Run a search in the test's folder; returns it."""

    def run(plan, start, total, *, say=lambda line: None, **options):
        storage = f"journal:///{tmp_path}/study.log"
        search = open_search(plan, storage=storage, study_name="one")
        run_search(
            search, plan, total=total, output_dir=tmp_path / "out", start=start, say=say, **options
        )
        return search

    return run


def _states(search) -> list[str]:
    return [trial.state.name for trial in search.study.trials]


def test_it_finds_what_is_planted(search, write_search, fake):
    """The score depends on one key: the best of 30 trials is near its best value."""
    plan = read_plan(write_search(pruner={"name": "none"}))
    found = search(plan, fake(lambda values: -abs(values[HIGH] - 0.62)), 30)
    assert abs(found.study.best_params[HIGH] - 0.62) < 0.02
    assert all(t.params[LOW] < t.params[HIGH] for t in found.study.trials)
    learned = [abs(t.params[HIGH] - 0.62) for t in found.study.trials]
    assert sum(learned[20:]) / 10 < 0.75 * sum(learned[:20]) / 20


def test_the_same_seed_gives_the_same_search(plan, fake, tmp_path):
    params = []
    for name, stops in (("a", [12]), ("b", [5, 12])):
        storage = f"journal:///{tmp_path}/{name}.log"
        for total in stops:  # in one go, and in two
            search = open_search(plan, storage=storage, study_name="one")
            start = fake(lambda values: -values[LOW])
            out = tmp_path / name
            run_search(search, plan, total=total, output_dir=out, start=start, say=lambda _: None)
        params.append([(t.params, t.state, t.value) for t in search.study.trials])
    assert params[0] == params[1]
    assert len({p[LOW] for p, _, _ in params[0]}) == 12


def test_bad_trials_are_pruned_by_their_reports(search, write_search, fake):
    plan = read_plan(write_search(sampler={"name": "random"}))
    lines = []
    found = search(plan, fake(lambda values: -abs(values[LOW] - 0.2)), 20, say=lines.append)
    states = _states(found)
    assert states.count("PRUNED") >= 3 and states.count("PRUNED") + states.count("COMPLETE") == 20
    pruned = next(t for t in found.study.trials if t.state.name == "PRUNED")
    assert 2 <= max(pruned.intermediate_values) < 4  # the first report is spared
    complete = [t for t in found.study.trials if t.state.name == "COMPLETE"]
    assert all(t.intermediate_values[4] == t.value for t in complete)
    assert any(line.startswith(f"trial {pruned.number} pruned; ") for line in lines)
    assert "20 of 20, best " in lines[-1]


def test_processes_are_pruned_by_the_median(search, write_search, cheap_trial):
    """The answer reaches a process of its own, which stops there."""
    plan = read_plan(write_search(pruner={"name": "median", "startup_trials": 1}))
    found = search(plan, cheap_trial, 4)
    pruned = [t for t in found.study.trials if t.state.name == "PRUNED"]
    assert pruned and all(sorted(t.intermediate_values) == [1, 2] for t in pruned)
    assert len(found.study.trials) == 4


def test_hyperband_prunes_within_constraints(search, write_search, fake):
    pruner = {"name": "hyperband", "min_reports": 1, "reduction_factor": 2}
    plan = read_plan(write_search(pruner=pruner, sampler={"startup_trials": 5}))
    found = search(plan, fake(lambda values: -abs(values[LOW] - 0.2)), 20)
    assert _states(found).count("PRUNED") >= 3
    assert all(t.params[LOW] < t.params[HIGH] for t in found.study.trials)
    assert len({t.params[LOW] for t in found.study.trials}) == 20


def test_failed_trials_are_recorded_and_replaced(search, plan, fake):
    def score(values):
        if 0.2 < values[LOW] < 0.3:
            raise RuntimeError("CUDA out of memory")
        return 1.0

    found = search(plan, fake(score), 8)
    states = _states(found)
    assert states.count("COMPLETE") == 8 and states.count("FAIL") >= 1
    failed = [t for t in found.study.trials if t.state.name == "FAIL"]
    assert {t.user_attrs["reason"] for t in failed} == {"CUDA out of memory"}
    assert {t.value for t in failed} == {None}


def test_three_failures_in_a_row_end_it(search, plan, fake, tmp_path):
    def score(values):
        raise RuntimeError("no shards")

    with pytest.raises(SearchError, match="3 trials in a row failed, the last one with: no shards"):
        search(plan, fake(score), 8)
    found = load_search(f"journal:///{tmp_path}/study.log")
    assert _states(found) == ["FAIL"] * 3


def test_workers_share_the_trials(search, write_search, fake):
    plan = read_plan(write_search(pruner={"name": "none"}))
    at_work, most = set(), []
    together = threading.Barrier(3)

    def score(values):
        at_work.add(threading.get_ident())
        together.wait(30)
        most.append(len(at_work))
        return values[LOW]

    found = search(plan, fake(score), 6, workers=3)
    assert _states(found) == ["COMPLETE"] * 6 and len(at_work) == 3
    assert len({t.params[LOW] for t in found.study.trials}) == 6


def test_a_finished_search_runs_nothing(search, plan, fake):
    search(plan, fake(lambda values: 1.0), 2)

    def never(values):
        raise AssertionError

    assert _states(search(plan, fake(never), 2)) == ["COMPLETE"] * 2


def test_every_trial_has_its_folder(search, plan, fake, tmp_path):
    found = search(plan, fake(lambda values: values[LOW]), 3)
    for trial in found.study.trials:
        folder = tmp_path / "out" / f"trial_{trial.number:04d}"
        cfg = load_config(folder / "config.yaml")
        assert str(folder) == cfg.OUTPUT_DIR
        assert [trial.params[LOW], trial.params[HIGH]] == cfg.MODEL.RPN.IOU_THRESHOLDS
        assert read_job(folder).values == found.space.values(trial.params)


def test_a_folder_of_another_study_is_left_alone(search, plan, fake, tmp_path):
    search(plan, fake(lambda values: 1.0), 1)
    other = open_search(plan, storage=f"sqlite:///{tmp_path}/other.db", study_name="one")
    with pytest.raises(SearchError, match=r"out: holds the trials of another study"):
        run_search(other, plan, total=1, output_dir=tmp_path / "out")
    assert other.study.trials == []


def test_best_yaml_trains_the_base_with_the_best_values(search, plan, fake, tmp_path, repository):
    found = search(plan, fake(lambda values: values[LOW]), 5)
    path = write_best(found, plan, tmp_path / "out")
    best = max(found.study.trials, key=lambda t: t.params[LOW] if t.value is not None else -1)
    text = path.read_text()
    assert text.startswith(
        f"# Best of 5 complete trials of study one: trial {best.number}, segm AP"
    )
    cfg = load_config(path)
    assert [best.params[LOW], best.params[HIGH]] == cfg.MODEL.RPN.IOU_THRESHOLDS
    assert found.space.values(best.params)["MODEL.FREEZE.MODULES"] == cfg.MODEL.FREEZE.MODULES
    base = yaml.safe_load(load_config(repository / "configs/demo/stage3.yaml").dump())
    assert base["SOLVER"]["MAX_ITER"] == cfg.SOLVER.MAX_ITER
    assert str(tmp_path / "out" / "best") == cfg.OUTPUT_DIR


def test_best_yaml_leaves_out_what_does_not_act_in_it(search, write_search, fake, tmp_path):
    """A training would refuse it: SOLVER.MOMENTUM, of a search that ends with ADAMW."""
    space = {
        "SOLVER.OPTIMIZER": {"type": "categorical", "choices": ["SGD", "ADAMW"]},
        "SOLVER.MOMENTUM": {"type": "float", "low": 0.1, "high": 0.4},
    }
    plan = read_plan(write_search(space=space, constraints=[]))
    found = search(plan, fake(lambda values: float(values["SOLVER.OPTIMIZER"] == "ADAMW")), 4)
    path = write_best(found, plan, tmp_path / "out")
    cfg = load_config(path)
    assert cfg.SOLVER.OPTIMIZER == "ADAMW" and idle_keys(cfg) == {}
    assert re.search(
        r"#   SOLVER.MOMENTUM 0.\d+ \(left out: acts with SOLVER.OPTIMIZER SGD only\)\n",
        path.read_text(),
    )


def test_best_yaml_is_what_other_seeds_confirm(search, plan, fake, tmp_path):
    found = search(plan, fake(lambda values: values[LOW]), 3)
    first, second = top_trials(found.study, 2)
    confirmed = [
        ConfirmedTrial(first.number, first.value, {2: 1.0, 3: 2.0}),
        ConfirmedTrial(second.number, second.value, {2: 3.0, 3: 4.0}),
    ]
    path = write_best(found, plan, tmp_path / "out", confirmed=confirmed)
    assert load_config(path).MODEL.RPN.IOU_THRESHOLDS[0] == second.params[LOW]
    text = path.read_text()
    assert f"trial {second.number}, segm AP {second.value:.4f}" in text
    assert "Mean of 2 runs with other seeds 3.5000, best of 2 trials run again." in text


def test_without_a_complete_trial_there_is_no_best(plan, tmp_path):
    empty = open_search(plan, storage=f"sqlite:///{tmp_path}/study.db", study_name="one")
    assert write_best(empty, plan, tmp_path) is None
    assert not (tmp_path / "best.yaml").exists()


def test_the_best_run_again_with_other_seeds(search, plan, cheap_trial, fake, tmp_path):
    found = search(plan, fake(lambda values: values[LOW]), 3)
    started = []

    def start(folder, environment):
        started.append(folder.name)
        return cheap_trial(folder, environment)

    options = {"seeds": 2, "output_dir": tmp_path / "out", "say": lambda line: None}
    values = run_again(found, plan, found.study.trials[:2], start=start, **options)
    assert started == [f"trial_{t:04d}_seed_{s}" for t in (0, 1) for s in (2, 3)]  # the demo has 1
    assert {number: list(seeds) for number, seeds in values.items()} == {0: [2, 3], 1: [2, 3]}
    for trial in found.study.trials[:2]:
        assert values[trial.number][2] == pytest.approx(-abs(trial.params[LOW] - 0.2))
    cfg = load_config(tmp_path / "out/confirm/trial_0001_seed_3/config.yaml")
    assert cfg.SEED == 3
    assert run_again(found, plan, found.study.trials[:2], start=None, **options) == values
    assert len(found.study.trials) == 3


def test_folders_know_their_trials(plan, tmp_path):
    folders = TrialFolders(tmp_path, "study")
    assert folders.find_outcome(0) is None
    (tmp_path / "trial_0000").mkdir()
    (tmp_path / "trial_0000" / "outcome.json").write_text('{"state": "complete", "value": 1.0}')
    assert folders.find_outcome(0) is None  # nothing says that this is a trial of ours


def test_ctrl_c_ends_everything(plan, cheap_trial, search, monkeypatch, request):
    """The trial's process ends, the trial itself is free for whoever comes next."""
    monkeypatch.setenv("SEARCH_TEST_DELAY", "30")
    # a test suite in the background may have been told to ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    processes = []

    def start(folder, environment):
        processes.append(cheap_trial(folder, environment))
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        return processes[-1]

    with pytest.raises(KeyboardInterrupt):
        search(plan, start, 2)
    with pytest.raises(ProcessLookupError):
        os.kill(processes[0].pid, 0)
    monkeypatch.setenv("SEARCH_TEST_DELAY", "0")
    found = search(plan, cheap_trial, 2)
    assert _states(found) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert found.study.trials[1].params == found.study.trials[0].params


def test_a_result_that_was_not_told_is_told(search, plan, fake, tmp_path):
    """The search ends between a trial's last word and its own record of it."""

    def start(folder, environment):
        process = fake(lambda values: values[LOW])(folder, environment)

        def wait(report):
            (folder / "outcome.json").write_text('{"state": "complete", "value": 0.125}')
            raise KeyboardInterrupt

        process.wait = wait
        return process

    with pytest.raises(KeyboardInterrupt):
        search(plan, start, 1)
    assert _states(load_search(f"journal:///{tmp_path}/study.log")) == ["RUNNING"]
    found = search(plan, None, 1)
    assert [(t.state.name, t.value) for t in found.study.trials] == [("COMPLETE", 0.125)]


def test_processes_share_a_journal(plan, cheap_trial, tmp_path, capfd):
    storage = f"journal:///{tmp_path}/study.log"
    search = open_search(plan, storage=storage, study_name="one")
    run_search(search, plan, total=5, output_dir=tmp_path, workers=2, start=cheap_trial)
    again = load_search(storage)
    assert [t.value is not None for t in again.study.trials] == [True] * 5
    assert "new study" not in capfd.readouterr().err  # Optuna's own log


def test_two_machines_share_a_study_on_postgresql(plan, fake, tmp_path, postgresql, monkeypatch):
    """Each with a folder of its own; both create the study."""
    names = iter("ab")
    monkeypatch.setattr("d2_cityscapes.search.trials.trial_queue._machine", lambda: next(names))

    def work(environment):
        search = open_search(plan, storage=postgresql, study_name="one")
        out = tmp_path / str(threading.get_ident())
        start = fake(lambda values: values[LOW])
        run_search(search, plan, total=8, output_dir=out, start=start, say=lambda line: None)

    Workers(None, count=2).run(work)
    trials = load_search(postgresql, "one").study.trials
    finished = [t for t in trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert len(finished) == 8
    assert all(t.state.name == "FAIL" for t in trials if t not in finished)
    assert len({t.params[LOW] for t in finished}) == 8
    shares = [len(list(folder.glob("trial_*"))) for folder in tmp_path.iterdir() if folder.is_dir()]
    assert len(shares) == 2 and min(shares) >= 1


def test_gpus_are_shared_in_turn(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices = [e["CUDA_VISIBLE_DEVICES"] for e in worker_environments(3)]
    assert devices == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    devices = [e["CUDA_VISIBLE_DEVICES"] for e in worker_environments(3)]
    assert devices == ["5", "7", "5"]


def test_workers_without_gpus_share_the_cores(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [e["OMP_NUM_THREADS"] for e in worker_environments(3)] == ["2"] * 3
    assert "OMP_NUM_THREADS" not in worker_environments(1)[0]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert [e["OMP_NUM_THREADS"] for e in worker_environments(2)] == ["5", "5"]


def test_no_workers_are_refused(fake):
    with pytest.raises(SearchError, match="--workers 0: use 1 or more"):
        Workers(fake(lambda values: 1.0), count=0)


def test_an_error_in_one_worker_ends_the_others(fake):
    workers = Workers(fake(lambda values: 1.0), count=2)
    first = threading.Event()

    def work(environment):
        if first.is_set():
            raise SearchError("broken")
        first.set()
        assert workers.stopping.wait(30)

    with pytest.raises(SearchError, match="broken"):
        workers.run(work)

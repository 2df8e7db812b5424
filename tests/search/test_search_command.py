"""The command: a user's mistakes in one line, and a whole search that is killed twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import optuna
import pytest
import yaml

from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.search.study import load_search

pytestmark = pytest.mark.usefixtures("datasets")

LOSS = {"dataset": "cityscapes_shards_val_1", "task": "val_loss", "metric": "total_loss"}


@pytest.fixture
def call(call):
    """Run the command in this process; returns exit code, stdout and stderr."""
    return partial(call, "tools/search.py")


def test_help(call):
    code, out, _ = call("--help")
    assert code == 0
    for word in ("--config-file", "--trials", "--storage", "--workers", "--confirm", "KEY VALUE"):
        assert word in out


@pytest.mark.parametrize(
    ("sections", "arguments", "message"),
    [
        ({"space": {"MODEL.RPN.IOU_TRESHOLDS[0]": {"type": "float", "low": 0.1, "high": 0.4}}}, [],
         "unknown config key MODEL.RPN.IOU_TRESHOLDS; nearest: MODEL.RPN.IOU_THRESHOLDS"),
        ({"space": {"MODEL.RPN.IOU_THRESHOLDS[7]": {"type": "float", "low": 0.1, "high": 0.4}}}, [],
         "wrong index 7"),
        ({"constraints": ["MODEL.RPN.IOU_THRESHOLDS[0] > 1"]}, [], "none of 5000 random samples"),
        ({}, ["--storage", "postgresql://me@127.0.0.1:1/x"], "cannot be used"),
        ({}, ["--storage", "study.db"], "use sqlite:///FILE"),
        ({}, ["--trials", "0"], "--trials 0: use 1 or more"),
        ({}, ["--workers", "0"], "--workers 0: use 1 or more"),
        ({}, [], "search.yaml: names no number of trials; use --trials"),
        ({}, ["--confirm", "-1"], "--confirm -1: use 0 or more"),
        ({}, ["--output-dir", "{tmp}/search.yaml"], "search.yaml: cannot be written to"),
        ({}, ["--output-dir", "{tmp}/search.yaml/out"], "out: cannot be written to"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(
    call, write_tiny, tmp_path, sections, arguments, message
):
    source = write_tiny(**sections)
    if "--trials" not in arguments and "no number of trials" not in message:
        arguments = [*arguments, "--trials", "2"]
    output = tmp_path / "out"
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    code, _, err = call("--config-file", source, "--output-dir", output, *arguments)
    assert code == 1 and message in err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert not output.exists()


@pytest.mark.parametrize("name", ["best.yaml", "report.html"])
def test_nothing_that_is_read_is_overwritten(call, write_tiny, tmp_path, repository, name):
    """Neither the search file, nor what its base begins with; no journal is written into it."""
    (tmp_path / "out").mkdir()
    output, base = tmp_path / "out" / name, tmp_path / "base.yaml"
    demo = f"_BASE_: {repository / 'configs' / 'demo' / 'stage3.yaml'}\n"

    def refused(plan, word, *arguments):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        code, _, err = call("--config-file", plan, "--trials", "1", *arguments)
        assert code == 1 and f"{word}: is read here too" in err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    base.write_text(demo)
    write_tiny(base="../base.yaml").rename(output)
    refused(output, name, "--output-dir", output.parent)
    output.write_text(demo)
    base.write_text(f"_BASE_: out/{name}\n")
    refused(write_tiny(base="base.yaml"), name, "--output-dir", output.parent)
    plan = write_tiny()
    plan.write_text(json.dumps(yaml.safe_load(plan.read_text())))  # Optuna appends to one line
    refused(plan, plan.name, "--output-dir", tmp_path / "new", "--storage", f"journal:///{plan}")


def test_a_damaged_record_of_the_search(call, write_tiny, tmp_path):
    (tmp_path / "out").mkdir()
    for text in ("{", "[]", "{}"):
        (tmp_path / "out" / "search.json").write_text(text)
        code, _, err = call(
            "--config-file", write_tiny(), "--output-dir", tmp_path / "out", "--trials", "1"
        )
        (line,) = err.strip().splitlines()
        assert code == 1 and "search.json: does not say whose trials these are" in line


def test_another_space_stops_before_anything_is_built(call, write_tiny, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=storage, study_name="search").set_user_attr("search", None)
    code, _, err = call(
        "--config-file", write_tiny(), "--output-dir", tmp_path / "out", "--storage", storage,
        "--trials", "2",
    )  # fmt: skip
    assert code == 1 and "not made by d2c search" in err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_study_stops_before_anything_is_built(call, write_tiny, tmp_path):
    """And the storage does not get a study that nothing will ever be in."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "search.json").write_text('{"study": "another"}')
    code, out, err = call(
        "--config-file", write_tiny(), "--output-dir", tmp_path / "out", "--trials", "2",
        "--storage", f"sqlite:///{tmp_path}/new.db",
    )  # fmt: skip
    assert code == 1 and "out: holds the trials of another study" in err
    assert "checking" not in out and not (tmp_path / "new.db").exists()


@pytest.fixture
def begin(repository, write_tiny, tmp_path):
    """Start the command on a tiny model: 6 trials of 3 iterations."""
    source = write_tiny(
        objective=LOSS, budget={"iterations": 3, "reports": 3}, trials=6, pruner={"name": "none"}
    )

    def run(*more) -> subprocess.Popen:
        command = [sys.executable, "-W", "ignore", repository / "tools/search.py"]
        command += ["--config-file", source, "--output-dir", tmp_path / "out", *more]
        return subprocess.Popen(
            [str(part) for part in command], text=True, cwd=repository,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return run


def _wait_for(search: subprocess.Popen, text: str) -> None:
    assert any(text in line for line in search.stdout), f"ended without {text!r}"


@pytest.mark.slow
def test_a_search_that_trains_and_is_killed_twice(begin, tmp_path):
    out = tmp_path / "out"
    search = begin()
    _wait_for(search, "trial 1 report 1")
    search.kill()
    search.communicate()
    before = load_search(f"sqlite:///{out}/study.db").study.trials
    assert [t.state.name for t in before] == ["COMPLETE", "RUNNING"]

    search = begin()
    _wait_for(search, "trial 3 report 1")
    time.sleep(0.2)
    os.kill(_process_of(out / "trial_0003"), signal.SIGKILL)
    output, _ = search.communicate(timeout=600)
    assert search.returncode == 0, output

    study = load_search(f"sqlite:///{out}/study.db").study
    assert Counter(t.state.name for t in study.trials) == {"COMPLETE": 6, "FAIL": 2}
    assert study.trials[0].value == before[0].value
    for dead, heir in ((1, 2), (3, 4)):
        assert study.trials[dead].params == study.trials[heir].params
        assert sorted(study.trials[heir].intermediate_values) == [1, 2, 3]
        log = (out / f"trial_{heir:04d}" / "log.txt").read_text()
        assert "Starting training from iteration 1" in log or "from iteration 2" in log
    for trial in study.trials:
        if trial.state.name == "COMPLETE":
            cfg = load_config(out / f"trial_{trial.number:04d}" / "config.yaml")
            assert trial.params["SOLVER.BASE_LR"] == cfg.SOLVER.BASE_LR
    assert "6 complete, 2 interrupted" in output
    assert study.best_params["SOLVER.BASE_LR"] == load_config(out / "best.yaml").SOLVER.BASE_LR
    assert (out / "report.html").is_file()


@pytest.mark.slow
def test_the_demo_with_two_workers_and_a_confirmation(begin, tmp_path):
    search = begin("--workers", 2, "--trials", 3, "--confirm", 1)
    output, _ = search.communicate(timeout=600)
    assert search.returncode == 0, output
    assert "MODEL.RPN.IOU_THRESHOLDS[0] acts on model.proposal_generator.anchor_matcher" in output
    best = load_search(f"sqlite:///{tmp_path}/out/study.db").study.best_trial.number
    folders = sorted(path.name for path in (tmp_path / "out/confirm").iterdir())
    assert folders == [f"trial_{best:04d}_seed_2", f"trial_{best:04d}_seed_3"]
    assert f"trial {best} with seed 2: val_loss total_loss" in output


def _process_of(folder) -> int:
    """The process that works in a trial's folder."""
    found = subprocess.check_output(["pgrep", "-f", f"d2_cityscapes.search.trials.trial {folder}"])
    return int(found.split()[0])

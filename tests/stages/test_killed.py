"""Stages that are killed and run again end with the weights of a run without the stop."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from d2_cityscapes.engine.trainer import setup, train
from d2_cityscapes.evaluation.results import read_results
from d2_cityscapes.stages.run import Stage, plan_stages

pytestmark = pytest.mark.usefixtures("datasets")

STEPS, PERIOD = 6, 2
STAGES = {
    0: ("semantic", []),
    1: ("instance", ["MODEL:", "  FREEZE: {MODULES: [backbone.bottom_up]}"]),
    2: (
        "instance",
        [
            "MODEL:",
            "  FREEZE: {MODULES: [backbone]}",
            "  ANCHOR_GENERATOR: {NAME: KMeansAnchorGenerator}",
        ],
    ),
    3: (
        "instance",
        [
            "MODEL:",
            "  ANCHOR_GENERATOR: {NAME: KMeansAnchorGenerator}",
            "DATASETS: {TRAIN: [cityscapes_shards_val_select]}",
        ],
    ),
}
OPTS = [
    "SOLVER.MAX_ITER", str(STEPS), "SOLVER.CHECKPOINT_PERIOD", str(PERIOD),
    "SOLVER.IMS_PER_BATCH", "2", "TEST.EXPECTED_RESULTS", "[]",
    # a thin ResNet-50, whose checkpoints are small
    "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def config_dir(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stage0.yaml to stage3.yaml on top of configs/quick."""
    folder = tmp_path_factory.mktemp("configs")
    for number, (base, lines) in STAGES.items():
        text = [f"_BASE_: {repository}/configs/quick/{base}.yaml", *lines]
        (folder / f"stage{number}.yaml").write_text("\n".join(text) + "\n")
    return folder


@pytest.fixture(scope="module")
def finished(
    config_dir: Path, datasets_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output folder of stage 0, trained without a stop."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets_root))
        _train(_stage(folder, config_dir))
    return folder


def _stage(folder: Path, config_dir: Path, *opts: str) -> Stage:
    (stage,) = plan_stages(folder, config_dir=config_dir, stages=[0], opts=[*OPTS, *opts])
    return stage


def _train(stage: Stage) -> None:
    """As the stage's own process does."""
    config_file, opts = str(stage.config_file), list(stage.opts)
    args = argparse.Namespace(config_file=config_file, opts=opts, eval_only=False)
    train(setup(args), resume=True)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def _equal(folder: Path, other: Path) -> bool:
    ours, theirs = _weights(folder), _weights(other)
    return ours.keys() == theirs.keys() and all(t.equal(theirs[n]) for n, t in ours.items())


# What a kill can leave of stage 0, from the finished folder.


def _remove(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()


def _resume_from(folder: Path, name: str) -> None:
    (folder / "last_checkpoint").write_text(name)


def _before_the_first_checkpoint(folder: Path) -> None:
    _remove(folder, "*.pth", "last_checkpoint", "results.json")


def _after_a_checkpoint(folder: Path) -> None:
    _remove(folder, "model_0000003.pth", "model_0000005.pth", "model_final.pth", "results.json")
    _resume_from(folder, "model_0000001.pth")


def _between_a_checkpoint_and_its_tag(folder: Path) -> None:
    _remove(folder, "model_0000005.pth", "model_final.pth", "results.json")
    _resume_from(folder, "model_0000001.pth")


def _between_the_last_two_checkpoints(folder: Path) -> None:
    _remove(folder, "model_final.pth", "results.json")
    _resume_from(folder, "model_0000005.pth")


def _while_the_last_one_was_written(folder: Path) -> None:
    _between_the_last_two_checkpoints(folder)
    (folder / ".model_final.pth.123.tmp").write_bytes(b"half of it")
    config = folder / "config.yaml"
    config.write_text(config.read_text()[:1000])


def _before_the_evaluation(folder: Path) -> None:
    _remove(folder, "results.json")


def _before_the_evaluation_with_results_of_an_earlier_one(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    for row in results["results"]:
        row["value"] = 1.0
    (folder / "results.json").write_text(json.dumps(results | {"weights_sha256": None}))


@pytest.mark.parametrize(
    "leave",
    [
        _before_the_first_checkpoint,
        _after_a_checkpoint,
        _between_a_checkpoint_and_its_tag,
        _between_the_last_two_checkpoints,
        _while_the_last_one_was_written,
        _before_the_evaluation,
        _before_the_evaluation_with_results_of_an_earlier_one,
    ],
)
def test_whatever_a_kill_leaves_is_not_done_and_is_completed(
    leave: Callable[[Path], None], finished: Path, config_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "stage0", tmp_path / "stage0")
    stage = _stage(tmp_path, config_dir)
    assert stage.is_done
    leave(tmp_path / "stage0")
    assert not stage.is_done
    _train(_stage(tmp_path, config_dir))
    assert stage.is_done
    assert _equal(tmp_path / "stage0", finished / "stage0")
    assert read_results(stage.results)[0] == read_results(finished / "stage0/results.json")[0]


def test_a_damaged_end_is_not_done(finished: Path, config_dir: Path, tmp_path: Path) -> None:
    for damage in ("model_final.pth", "results.json"):
        folder = tmp_path / damage
        shutil.copytree(finished, folder)
        path = folder / "stage0" / damage
        path.write_bytes(path.read_bytes()[:-100])
        assert not _stage(folder, config_dir).is_done


def test_a_failing_write_leaves_the_checkpoint_before(
    finished: Path, config_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stops a write half-way, neither the file nor the tag is half there."""
    shutil.copytree(finished / "stage0", tmp_path / "stage0")
    _after_a_checkpoint(tmp_path / "stage0")
    save = torch.save

    def stop(content: object, file) -> None:
        save(content, file)
        raise RuntimeError("the machine stops")

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(RuntimeError, match="the machine stops"):
        _train(_stage(tmp_path, config_dir))
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "stage0").glob("*.pth*")] == ["model_0000001.pth"]
    assert (tmp_path / "stage0/last_checkpoint").read_text() == "model_0000001.pth"


class Command:
    """tools/run_stages.py, running, in a process group of its own."""

    def __init__(self, repository: Path, config_dir: Path, output: Path, *arguments: str) -> None:
        call = [sys.executable, "-W", "ignore", repository / "tools/run_stages.py"]
        call += ["--config-dir", config_dir, "--output-dir", output, *arguments, *OPTS]
        self._output = output.with_name(f"{output.name}_{time.monotonic_ns()}.txt")
        with open(self._output, "w") as file:
            self.process = subprocess.Popen(
                [str(part) for part in call],
                stdout=file,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def announced(self) -> list[int]:
        """The stages that it has begun or gone on with."""
        lines = self._output.read_text().splitlines()
        return [int(x[6]) for x in lines if x.startswith("stage ") and " -> " in x]

    def wait_until(self, happened: Callable[[], object]) -> None:
        while not happened():
            assert self.process.poll() is None, self.errors()
            time.sleep(0.002)

    def stop(self, number: int) -> str:
        """Send a signal to the command alone (kill), or to its group (as Ctrl-C does)."""
        send = os.killpg if number == signal.SIGINT else os.kill
        send(self.process.pid, number)
        return self.errors(timeout=30)

    def errors(self, timeout: float = 600) -> str:
        """Wait for the end of all its processes, which hold the pipe; what they wrote there."""
        return self.process.communicate(timeout=timeout)[1]


@pytest.mark.slow
def test_ctrl_c_and_kills_of_the_command(
    repository: Path, config_dir: Path, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stage0"

    def start() -> Command:
        return Command(repository, config_dir, tmp_path, "--stages", "0")

    first = start()  # its child has just begun to import
    first.wait_until(first.announced)
    errors = first.stop(signal.SIGINT)
    assert first.process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted" and "Traceback" not in errors
    assert not (folder / "results.json").exists()

    second = start()
    second.wait_until((folder / "last_checkpoint").is_file)
    second.stop(signal.SIGKILL)
    assert not (folder / "results.json").exists()

    third = start()
    errors = third.errors()
    assert third.process.returncode == 0, errors
    assert _equal(folder, finished / "stage0")
    assert (tmp_path / "results.json").read_bytes() == (folder / "results.json").read_bytes()


@pytest.mark.slow
def test_five_kills_at_random_moments_of_the_whole_recipe(
    repository: Path, config_dir: Path, tmp_path: Path
) -> None:
    """A moment is so long after a stage was announced, or has written one of its files."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command = Command(repository, config_dir, whole)
    errors = command.errors()
    assert command.process.returncode == 0, errors

    chance = random.Random(5)
    files = ("model_0000001.pth", "model_0000005.pth", "model_final.pth")
    for number in sorted([*STAGES, chance.choice(list(STAGES))]):
        command = Command(repository, config_dir, stopped)
        command.wait_until(lambda c=command, n=number: n in c.announced())
        if chance.random() < 0.3:
            seconds = chance.uniform(0, 3)  # most of which its process takes to start
        else:
            path = stopped / f"stage{number}" / chance.choice(files)
            command.wait_until(path.is_file)
            seconds = chance.uniform(0, 0.2)
        end = time.monotonic() + seconds
        command.wait_until(lambda end=end: time.monotonic() >= end)
        command.stop(signal.SIGKILL)

    command = Command(repository, config_dir, stopped)
    errors = command.errors()
    assert command.process.returncode == 0, errors
    for number in STAGES:
        name = f"stage{number}"
        assert _equal(stopped / name, whole / name)
        expected, found = (read_results(f / name / "results.json")[0] for f in (whole, stopped))
        assert found == expected
    names = ("anchors.json", "table5.json", "table5.md")
    assert all((stopped / n).read_bytes() == (whole / n).read_bytes() for n in names)

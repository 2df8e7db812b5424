"""How fast a training runs, as it stands in the log and in metrics.json."""

from __future__ import annotations

import json
import logging
from argparse import Namespace

import pytest
import torch
from detectron2.engine import HookBase, TrainerBase

from d2_cityscapes.engine.progress import ProgressHook, ProgressPrinter, progress_text
from d2_cityscapes.engine.trainer import setup, train
from d2_cityscapes.report.curves import read_losses


class Clock(HookBase):
    """Puts given seconds as "time", None for none, as Detectron2's timer does."""

    def __init__(self, seconds: list[float | None]) -> None:
        self.seconds = seconds

    def after_step(self) -> None:
        seconds = self.seconds[self.trainer.iter]
        if seconds is not None:
            self.trainer.storage.put_scalars(time=seconds)


class Probe(HookBase):
    """Keeps the latest scalars and the text of every step."""

    def __init__(self) -> None:
        self.scalars: list[dict[str, float]] = []
        self.texts: list[str] = []

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        self.scalars.append({name: value for name, (value, _) in latest.items()})
        self.texts.append(progress_text(self.trainer.storage))


class Waiting(TrainerBase):
    """A training that waits given seconds for its data."""

    def __init__(self, data_times: list[float]) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1)
        self.data_times = data_times

    def run_step(self) -> None:
        self.storage.put_scalars(data_time=self.data_times[self.iter], total_loss=1.0)


def follow(times, data_times, *, images: int = 4, window: int = 20) -> Probe:
    probe, trainer = Probe(), Waiting(data_times)
    trainer.register_hooks([Clock(times), ProgressHook(images, window=window), probe])
    trainer.train(0, len(times))
    return probe


def test_the_scalars_are_means_over_the_steps_that_were_timed():
    # The first step is not timed. The next: 2 s and 1 s, of which 1.1 s and 0.1 s waiting.
    probe = follow([None, 2.0, 1.0], [9.0, 1.1, 0.1])
    assert probe.texts[0] == "" and "images_per_second" not in probe.scalars[0]
    last = probe.scalars[-1]
    assert last["iterations_per_second"] == pytest.approx(2 / 3)
    assert last["images_per_second"] == pytest.approx(8 / 3)
    assert last["data_share"] == pytest.approx(0.4)
    assert probe.texts[-1] == "0.667 it/s  2.67 images/s  data 40 %"
    assert "gpu_memory_mb" not in last


def test_only_the_last_steps_count():
    probe = follow([100.0, 1.0, 1.0], [100.0, 0.0, 0.5], window=2)
    assert probe.scalars[-1]["data_share"] == pytest.approx(0.25)
    assert probe.scalars[-1]["images_per_second"] == pytest.approx(4.0)


def test_a_wait_of_some_steps_is_no_median():
    probe = follow([1.0, 1.0, 1.0, 5.0], [0.0, 0.0, 0.0, 4.0])
    assert probe.scalars[-1]["data_share"] == pytest.approx(0.5)


def test_data_times_may_come_later():
    """As of a GPU, where they come with the losses: each counts for its own step."""

    class Late(Waiting):
        def run_step(self) -> None:
            for iteration in range(max(self.iter - 1, 0), self.iter + self.iter // 3):
                self.storage.iter = iteration
                self.storage.put_scalars(data_time=self.data_times[iteration])
            self.storage.iter = self.iter

    probe, trainer = Probe(), Late([0.5, 0.0, 3.0, 0.0])
    trainer.register_hooks([Clock([1.0, 1.0, 4.0, 1.0]), ProgressHook(4), probe])
    trainer.train(0, 4)
    shares = [scalars["data_share"] for scalars in probe.scalars]
    assert shares == pytest.approx([0.0, 0.5, 0.25, 3.5 / 7])


def test_every_line_ends_with_it():
    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    class Write(HookBase):
        def after_step(self) -> None:
            printer.write()

    lines: list[str] = []
    printer, handler = ProgressPrinter(2), Lines(logging.INFO)
    logger = logging.getLogger("detectron2.utils.events")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    trainer = Waiting([0.0, 0.5])
    trainer.register_hooks([Clock([None, 1.0]), ProgressHook(2), Write()])
    trainer.train(0, 2)
    logger.removeHandler(handler)
    assert "iter: 0" in lines[0] and "lr: N/A" in lines[0]  # on a GPU: and its memory
    assert "iter: 1" in lines[1] and "total_loss: 1" in lines[1]
    assert lines[1].endswith("  1 it/s  2 images/s  data 50 %")


def test_a_training_logs_it_beside_its_losses(repository, datasets, tiny_opts, tmp_path):
    opts = [*tiny_opts, "SOLVER.ACCUMULATE_STEPS", "2", "SOLVER.MAX_ITER", "4"]
    opts += ["OUTPUT_DIR", str(tmp_path), "TEST.NUM_PICTURES", "0"]
    config = str(repository / "configs" / "quick" / "semantic.yaml")
    train(setup(Namespace(config_file=config, opts=opts, eval_only=False)), allow_unused=True)
    metrics = tmp_path / "metrics.json"
    entry = json.loads(metrics.read_text().splitlines()[0])
    assert entry["images_per_second"] == pytest.approx(4 * entry["iterations_per_second"])
    assert 0 < entry["data_share"] < 1
    assert entry["eta_seconds"] == 0
    assert set(read_losses(metrics)) == {"total_loss"}  # the curves take no notice
    lines = (tmp_path / "log.txt").read_text().splitlines()
    (line,) = [line for line in lines if "iter: 3 " in line]
    assert "eta: 0:00:00" in line and "it/s" in line and "images/s" in line

"""The benchmark of training steps, end to end on a small model, and its refusal of other work."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from d2_cityscapes.benchmark import trainers, training, turns
from d2_cityscapes.benchmark.trainers import TrainingBenchmark, build, datasets, entries
from d2_cityscapes.benchmark.training import benchmark_training
from d2_cityscapes.benchmark.turns import DOES_NOT_FIT, Turn, Turns
from d2_cityscapes.commands import benchmark
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.shards.writer import write_shards
from d2_cityscapes.sources.cityscapes import find_sources


@pytest.fixture(scope="module")
def settings(repository, cityscapes_tree, tmp_path_factory) -> TrainingBenchmark:
    """One step of a small Mask R-CNN with frozen batch norms."""
    folder = tmp_path_factory.mktemp("benchmark")
    write_shards(find_sources(cityscapes_tree, "val"), folder / "shards", split="val")
    config = folder / "config.yaml"
    base = repository / "configs" / "quick" / "instance.yaml"
    config.write_text(f'_BASE_: "{base}"\nMODEL:\n  RESNETS:\n    NORM: "FrozenBN"\n')
    return TrainingBenchmark(
        cityscapes=cityscapes_tree,
        shards=folder / "shards",
        config=config,
        split="val",
        height=64,
        width=128,
        steps=1,
        rounds=1,
        device="cpu",
    )


def test_every_comparison_is_made(settings):
    reported = []
    found = benchmark_training(settings, report=reported.extend)
    assert reported == found
    steps = [c for c in found if c.measure.startswith("training step, 2 x 64x128 px")]
    rates = [c for c in found if c.unit == "images/s"]
    for step, rate in zip(steps, rates, strict=True):
        assert rate.ours == pytest.approx(2 / step.ours)
        assert rate.ratio == pytest.approx(step.ratio)
    assert [(c.measure.split(", ")[-1], c.peer) for c in steps] == [
        ("ours fp32", "stock fp32"),
        ("ours AMP bfloat16", "stock fp32"),
    ]


def test_all_begin_with_the_same_weights_and_compute_in_their_own_way(settings, tmp_path):
    with datasets(settings):
        weights = trainers.start_weights(settings, str(tmp_path))
        stock, ours, mixed = (
            build(settings, entry, str(tmp_path), weights).trainer for entry in entries(settings)
        )
    own = ours.model.state_dict()
    assert all(x.equal(own[name]) for name, x in stock.model.state_dict().items())
    assert all(x.equal(own[name]) for name, x in weights.items())
    fused = [x.optimizer.param_groups[0]["fused"] for x in (stock, ours)]
    assert not fused[0] and fused[1]
    assert [x.cfg.SOLVER.AMP.ENABLED for x in (stock, ours, mixed)] == [False, False, True]
    assert mixed.cfg.SOLVER.AMP.DTYPE == "bfloat16"


def test_other_work_is_found(settings, monkeypatch):
    with datasets(settings):
        contenders = Turns(settings)
        stock, ours, _ = entries(settings)
        same = contenders.take(stock, first=True)
        assert not same.trouble and not same.different and len(same.seconds) == settings.steps
        losses = {name: 2 * x for name, x in contenders.reference.losses.items()}
        contenders.reference = dataclasses.replace(contenders.reference, losses=losses)
        other = contenders.take(ours, first=True).different
        assert other.startswith("ours fp32: loss_") and "of the first" in other

        class Inverted(turns.CityscapesShardMapper):
            def __call__(self, dataset_dict):
                found = super().__call__(dataset_dict)
                return found | {"image": 255 - found["image"]}

        monkeypatch.setattr(turns, "CityscapesShardMapper", Inverted)
        other = Turns(settings).take(stock, first=True).different
        assert "not the image that Detectron2 reads" in other


def test_who_does_not_fit_or_fails_is_a_row_and_the_rest_goes_on(settings, monkeypatch):
    class Some(Turns):
        def _measure(self, entry, first):
            if "AMP" in entry.name:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            if entry.ours:
                raise ValueError("no such thing\nat all")
            return Turn(seconds=(2.0, 4.0), waited=0.5)

    monkeypatch.setattr(training, "Turns", Some)
    reported = []
    with pytest.raises(D2CityscapesError, match="ours fp32: ValueError: no such thing;"):
        benchmark_training(settings, report=reported.extend)
    assert [(c.ours, c.theirs, c.ratio) for c in reported if c.unit == "s"] == [
        ("ValueError: no such thing", 3.0, None),
        (DOES_NOT_FIT, 3.0, None),
    ]


def test_what_was_measured_is_reported_when_it_is_interrupted(settings, monkeypatch):
    class Interrupted(Turns):
        taken = 0

        def take(self, entry, *, first):
            Interrupted.taken += 1
            if Interrupted.taken == 3:
                raise KeyboardInterrupt
            return Turn(seconds=(1.0,))

    monkeypatch.setattr(training, "Turns", Interrupted)
    reported = []
    with pytest.raises(KeyboardInterrupt):
        benchmark_training(settings, report=reported.extend)
    assert {(c.ours, c.theirs) for c in reported if c.unit == "s"} == {(1.0, 1.0)}


def test_on_a_gpu(settings, fake_gpu, monkeypatch):
    settings = dataclasses.replace(settings, device="cuda")
    names = [entry.name for entry in entries(settings)]
    assert names == [
        "stock fp32, TF32 off", "ours fp32, TF32 off", "stock fp32, TF32 on", "ours fp32, TF32 on",
        "stock AMP float16", "ours AMP bfloat16",
    ]  # fmt: skip
    some = [entry for entry in entries(settings) if entry.name in (*names[:2], names[-1])]
    monkeypatch.setattr(training, "entries", lambda settings: some)
    found = benchmark_training(settings, report=lambda found: None)
    assert [c.unit for c in found[::2]] == ["s", "images/s", "GiB", "GiB", "%"]
    assert all(0.01 < c.ours < 1 and 0.01 < c.theirs < 1 for c in found if c.unit == "GiB")
    # no kernel runs, so there is nothing to divide by
    assert (found[-1].theirs, found[-1].ratio) == ("the profiler saw no kernel", None)


def test_the_command_passes_its_options_on(repository, cityscapes_tree, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(training, "benchmark_training", lambda s, report: taken.append(s) or [])
    options = ["--cityscapes", cityscapes_tree, "--split", "val", "--work-dir", tmp_path]
    options += ["--output", tmp_path / "out.json", "--height", "96", "--steps", "2"]
    options += ["--amp", "none", "--ours", "SOLVER.FUSED", "False"]
    benchmark.main(["train", *map(str, options)])
    (settings,) = taken
    assert (settings.height, settings.steps, settings.amp) == (96, 2, "")
    assert settings.width == (2048 if torch.cuda.is_available() else 1024)
    assert settings.overrides == ["SOLVER.FUSED", "False"]
    assert settings.config == repository / "configs" / "stage3.yaml"
    assert (settings.shards / "index.json").is_file()
    assert settings.profile and settings.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["batch"]

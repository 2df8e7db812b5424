"""The benchmark of training steps, end to end on a small model, and its refusal of other work."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch

from d2_cityscapes.benchmark import trainers, training
from d2_cityscapes.benchmark.trainers import (
    TrainingBenchmark,
    build_contenders,
    check_same_work,
    datasets,
)
from d2_cityscapes.benchmark.training import benchmark_training
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
    if torch.cuda.is_available():
        assert len(steps) == 5 and {c.unit for c in found} == {"s", "images/s", "GiB", "%"}
    else:
        assert [(c.measure.split(", ")[-1], c.peer) for c in steps] == [
            ("ours fp32", "stock fp32"),
            ("ours AMP bfloat16", "stock fp32"),
        ]


def test_all_begin_with_the_same_weights_and_compute_in_their_own_way(settings, tmp_path):
    with datasets(settings):
        stock, ours = build_contenders(settings, str(tmp_path))
        check_same_work(settings, stock, ours)
    (first, *_), (own, *_) = stock.values(), ours.values()
    weights = own.trainer.model.state_dict()
    assert all(x.equal(weights[name]) for name, x in first.trainer.model.state_dict().items())
    fused = [x.trainer.optimizer.param_groups[0]["fused"] for x in (first, own)]
    assert not fused[0] and fused[1]
    assert not first.trainer.cfg.SOLVER.AMP.ENABLED and not own.trainer.cfg.SOLVER.AMP.ENABLED
    assert list(ours.values())[-1].trainer.cfg.SOLVER.AMP.DTYPE == "bfloat16"
    assert {c.autocast for c in ours.values()} == {None, torch.bfloat16}


def test_other_work_is_an_error(settings, tmp_path, monkeypatch):
    with datasets(settings):
        stock, ours = build_contenders(settings, str(tmp_path))
        head = next(iter(ours.values())).trainer.model.roi_heads.mask_head
        with monkeypatch.context() as patch:
            patch.setattr(head, "loss_weight", 2.0)
            with pytest.raises(RuntimeError, match=r"ours fp32.*: loss_mask is .* of stock"):
                check_same_work(settings, stock, ours)

        class Inverted(trainers.CityscapesShardMapper):
            def __call__(self, dataset_dict):
                found = super().__call__(dataset_dict)
                return found | {"image": 255 - found["image"]}

        monkeypatch.setattr(trainers, "CityscapesShardMapper", Inverted)
        with pytest.raises(RuntimeError, match="not the image that Detectron2 reads"):
            check_same_work(settings, stock, ours)


def test_the_command_passes_its_options_on(repository, cityscapes_tree, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("tool", repository / "tools" / "benchmark.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    taken = []
    monkeypatch.setattr(training, "benchmark_training", lambda s, report: taken.append(s) or [])
    options = ["--cityscapes", cityscapes_tree, "--split", "val", "--work-dir", tmp_path]
    options += ["--output", tmp_path / "out.json", "--height", "96", "--steps", "2"]
    options += ["--amp", "none", "--ours", "SOLVER.FUSED", "False"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "train", *map(str, options)])
    tool.main()
    (settings,) = taken
    assert (settings.height, settings.steps, settings.amp) == (96, 2, "")
    assert settings.width == (2048 if torch.cuda.is_available() else 1024)
    assert settings.overrides == ["SOLVER.FUSED", "False"]
    assert settings.config == repository / "configs" / "stage3.yaml"
    assert (settings.shards / "index.json").is_file()
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["batch"]

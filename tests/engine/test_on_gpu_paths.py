"""Dry run, prediction and profile on the pretended GPU; and mistakes that are caught there."""

from __future__ import annotations

import pytest
import tiny_trainings
import torch
from fake_cuda import FakeCuda, ReadTooEarly

from d2_cityscapes.engine.dry_run import dry_run
from d2_cityscapes.engine.prediction import predict_pictures
from d2_cityscapes.engine.profiling import ProfileHook
from d2_cityscapes.engine.trainer import Trainer
from d2_cityscapes.structures import IdMapMasks

pytestmark = pytest.mark.usefixtures("datasets")


@pytest.fixture
def cfg_of(tmp_path):
    """(family, options, device, further keys) -> a config."""

    def make(family: str, options: str, device: str, *opts: str):
        file, own = tiny_trainings.settings(family, options.split())
        return tiny_trainings.config(file, [*own, *opts], device, tmp_path / device)

    return make


# --- paths beside training and evaluation ---


def test_a_dry_run_finds_the_largest_batch(cfg_of):
    with FakeCuda(memory=54 << 20) as gpu:
        found = dry_run(cfg_of("stage1", "bfloat16 FUSED EMA_DECAY", "cuda"))
        assert 2 <= found.largest_batch < 32
        assert 0 < found.peak[0] <= gpu.memory
    on_cpu = dry_run(cfg_of("stage1", "float32 FUSED EMA_DECAY", "cpu"))
    states = [name for name in on_cpu.sizes if name != "saved activations of a batch"]
    assert {name: found.sizes[name] for name in states} == {n: on_cpu.sizes[n] for n in states}


@pytest.mark.parametrize("family", ["stage0", "stage4"])
def test_predictions_are_those_of_the_cpu(family, cfg_of, cityscapes_tree, tmp_path, fake_gpu):
    picture = sorted(cityscapes_tree.rglob("*_leftImg8bit.png"))[0]
    weights = tmp_path / "weights.pth"
    torch.manual_seed(0)
    model = Trainer.build_model(cfg_of(family, "", "cpu"))
    torch.save({"model": model.state_dict()}, weights)
    written = []
    for device in ("cpu", "cuda"):
        cfg = cfg_of(family, "", device, "MODEL.WEIGHTS", str(weights))
        predict_pictures(cfg, [picture], tmp_path / f"predicted {device}")
        written.append(
            {path.name: path.read_bytes() for path in (tmp_path / f"predicted {device}").iterdir()}
        )
    assert written[0] == written[1] and len(written[0]) == 2


def test_a_profile_is_written(cfg_of, tmp_path, fake_gpu):
    trainer = Trainer(cfg_of("semantic", "", "cuda", "SOLVER.MAX_ITER", "4"))
    trainer.register_hooks([ProfileHook(tmp_path / "profile", 1)])
    trainer.train()
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {
        "trace.json.gz",
        "operators.txt",
    }


# --- mistakes ---


@pytest.fixture
def trainer(cfg_of, fake_gpu):
    return Trainer(cfg_of("stage1", "", "cuda"))


def test_classes_that_stay_on_the_cpu_are_found(trainer, monkeypatch):
    right = torch.nn.functional.cross_entropy

    def wrong(logits, classes, *args, **kwargs):
        return right(logits, classes.cpu(), *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", wrong)
    with pytest.raises(RuntimeError, match=r"same device.*on the CPU"):
        trainer.train()


def test_masks_that_stay_on_the_cpu_are_found(trainer, monkeypatch):
    monkeypatch.setattr(IdMapMasks, "to", lambda masks, *args, **kwargs: masks)
    with pytest.raises(RuntimeError, match="same device"):
        trainer.train()


def test_numbers_read_before_they_arrived_are_found(trainer, monkeypatch):
    """As by code that forgets the event of a copy, or asks it and does not wait."""
    monkeypatch.setattr(torch.cuda.Event, "query", lambda event: True)
    with pytest.raises(ReadTooEarly, match="d2_cityscapes/"):
        trainer.train()

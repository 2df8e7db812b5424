"""A GPU without memory left ends a command with one line, whatever it was doing."""

from __future__ import annotations

import logging
from argparse import Namespace

import pytest
import torch

from d2_cityscapes import get_cfg
from d2_cityscapes.engine.computing import computing
from d2_cityscapes.engine.out_of_memory import GpuMemoryError, during, explained, images_in_words
from d2_cityscapes.engine.trainer import Trainer, checked_config


def no_memory() -> RuntimeError:
    return torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def cfg(fake_gpu, repository, datasets, tiny_opts, tmp_path):
    """A small Mask R-CNN on the pretended GPU."""
    file = str(repository / "configs/quick/instance.yaml")
    opts = [*tiny_opts, "OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cuda"]
    return checked_config(Namespace(config_file=file, opts=opts, eval_only=False))


def leave_little(fake_gpu) -> None:
    fake_gpu.memory = torch.cuda.memory_allocated() + (1 << 20)


def test_a_training_names_iteration_batch_and_keys(fake_gpu, cfg, caplog):
    with pytest.raises(GpuMemoryError) as raised, computing(cfg):
        trainer = Trainer(cfg)
        leave_little(fake_gpu)
        trainer.train()
    line = str(raised.value)
    assert "in iteration 0, 2 images of up to 64 x 128 px (tensors held 0." in line
    for part in ("SOLVER.AMP.ENABLED True", "ACTIVATION_CHECKPOINTING True", "--dry-run"):
        assert part in line
    assert "\n" not in line
    assert raised.value.__cause__ is None, "which would hold what the step held"
    shown = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not any(record.exc_info for record in shown), "no traceback in the log"


def test_an_evaluation_says_so(fake_gpu, cfg):
    with pytest.raises(GpuMemoryError, match="in the evaluation"), computing(cfg):
        model = Trainer.build_model(cfg)
        leave_little(fake_gpu)
        Trainer.test(cfg, model)


@pytest.mark.parametrize(
    "error", [no_memory(), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")]
)
def test_what_ran_is_told_from_the_outside_in(error):
    with (
        pytest.raises(GpuMemoryError, match="too small in the evaluation, image 7"),
        explained(get_cfg()),
        during(lambda: "the evaluation"),
        during(lambda: "image 7"),
    ):
        raise error


def test_other_errors_stay_as_they_are():
    with (
        pytest.raises(RuntimeError, match="shapes") as raised,
        explained(get_cfg()),
        during(lambda: pytest.fail("nobody asks")),
    ):
        raise RuntimeError("shapes")
    assert not isinstance(raised.value, GpuMemoryError)


def test_keys_that_are_in_force_are_not_advised():
    cfg = get_cfg()
    cfg.SOLVER.AMP.ENABLED = True
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING = True
    cfg.SOLVER.IMS_PER_BATCH = 1
    with pytest.raises(GpuMemoryError) as raised, explained(cfg):
        raise no_memory()
    assert "SOLVER" not in str(raised.value) and "CHECKPOINTING" not in str(raised.value)
    assert "INPUT.MIN_SIZE_TRAIN" in str(raised.value)


def test_fragments_are_told_of(monkeypatch):
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    memory = (6 << 30, 11 << 30)
    monkeypatch.setattr("d2_cityscapes.engine.out_of_memory.peak_memory", lambda device: memory)
    expected = pytest.raises(GpuMemoryError, match=r"held 6\.0 GiB.*expandable_segments")
    with expected, explained(get_cfg()):
        raise no_memory()


def test_images_in_words():
    batch = [{"image": torch.zeros(3, 4, 8)}, {"image": torch.zeros(3, 6, 7)}]
    assert images_in_words(batch) == "2 images of up to 6 x 7 px"
    assert images_in_words(batch[:1]) == "1 image of 4 x 8 px"

"""The arithmetic of a run: what it says, that it acts, and that nothing of it stays behind."""

from __future__ import annotations

import argparse
import os
import warnings
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import TrainerBase
from torch import nn

from d2_cityscapes import get_cfg
from d2_cityscapes.engine import computing as module
from d2_cityscapes.engine.checks.config import check_model_config
from d2_cityscapes.engine.computing import (
    MemoryAdviceHook,
    computed_on,
    computing,
    refused_in_a_line,
    tf32,
    tf32_in_force,
    varying_sizes,
)
from d2_cityscapes.engine.setup import ConfigError, load_config
from d2_cityscapes.engine.trainer import setup, train
from d2_cityscapes.evaluation.results import read_results


def state() -> tuple:
    """All that `computing` may change."""
    return (
        tf32_in_force(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
        getattr(torch.backends.cuda.matmul, "fp32_precision", None),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def cpu_cfg(**solver):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def test_the_default_changes_nothing():
    before = state()
    with computing(cpu_cfg()):
        assert state() == before
    assert state() == before
    assert before[0] == (True, False), "PyTorch's own: convolutions, not matrix products"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "expected"), [("all", (True, True)), ("none", (False, False))])
def test_tf32_is_set_for_the_time_of_the_run(name, expected):
    before = state()
    with computing(cpu_cfg(TF32=name)):
        assert tf32_in_force() == expected
        assert torch.get_float32_matmul_precision() == ("high" if expected[1] else "highest")
    assert state() == before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="old names")
@pytest.mark.filterwarnings("error")
def test_tf32_set_by_the_new_names_is_read_and_put_back():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        assert tf32_in_force() == (True, True)
        with tf32(False):
            assert tf32_in_force() == (False, False)
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
        matmul.allow_tf32 = False
        matmul.fp32_precision = before


def test_deterministic_is_set_and_put_back(monkeypatch, log):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = state()
    with computing(cpu_cfg(DETERMINISTIC=True)):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert computed_on("cpu") == {"device": "cpu", "deterministic": "yes"}
    assert state() == before
    assert "computes with device cpu, deterministic yes" in log.text


def test_a_failed_run_leaves_nothing_behind(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before = state()
    with (
        pytest.raises(KeyError),
        computing(cpu_cfg(DETERMINISTIC=True, TF32="all")),
    ):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "the user's stays"
        raise KeyError
    assert state() == before


def test_operations_without_a_deterministic_form_are_one_line():
    torch_error = (
        "nll_loss2d_forward_out_cuda_template does not have a deterministic implementation, but "
        "you set 'torch.use_deterministic_algorithms(True)'. You can turn off determinism"
    )
    with (
        pytest.raises(
            ConfigError, match=r"DETERMINISTIC True: nll_loss2d_f.* set it to False"
        ) as c,
        refused_in_a_line(),
    ):
        raise RuntimeError(torch_error)
    assert "\n" not in str(c.value)
    with pytest.raises(RuntimeError, match="another"), refused_in_a_line():
        raise RuntimeError("another")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.TF32", "on"], r"SOLVER.TF32 'on': use all, none, or ''"),
        (["SOLVER.DETERMINISTIC", "True", "CUDNN_BENCHMARK", "True"], "not with CUDNN_BENCHMARK"),
    ],
)
def test_settings_that_cannot_be(opts, message):
    cfg = load_config("", ["MODEL.DEVICE", "cpu", *opts])
    with pytest.raises(ConfigError, match=message), computing(cfg):
        pass
    cfg = load_config("", ["MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "StagedRCNN", *opts])
    with pytest.raises(ConfigError, match=message):
        check_model_config(cfg)


MASKS = "the objects of a batch"


@pytest.mark.parametrize(
    ("config", "opts", "expected"),
    [
        ("semantic/deeplabv3_R_50_768x1024", [], []),
        ("stage0", [], []),
        ("stage0", ["INPUT.MIN_SIZE_TRAIN", "(512, 800)"], ["INPUT.MIN_SIZE_TRAIN"]),
        ("stage0", ["INPUT.CROP.ENABLED", "True"], ["INPUT.CROP.TYPE"]),
        ("stage3", [], [MASKS]),
        ("stage3", ["MODEL.MASK_ON", "False"], []),
        ("baselines/mask_rcnn_R_50_FPN", [], ["INPUT.MIN_SIZE_TRAIN", MASKS]),
    ],
)
def test_what_varies_in_size_under_cudnn_benchmark(repository, config, opts, expected):
    found = varying_sizes(load_config(repository / f"configs/{config}.yaml", opts, train=False))
    assert bool(found) == bool(expected)
    assert all(part in found for part in expected)


@pytest.fixture
def fake_card(monkeypatch, fake_gpu):
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"], raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Card", raising=False)

    def capability(major: int, minor: int) -> None:
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda *_: (major, minor), raising=False
        )

    capability(8, 6)
    return capability


def test_a_gpu_is_named_with_its_arithmetic(fake_card, log):
    cfg = cpu_cfg(TF32="none")
    cfg.MODEL.DEVICE = "cuda"
    with computing(cfg):
        assert computed_on("cuda") == {"device": "Card", "TF32": "off"}
    assert "INFO computes with device Card, TF32 off" in log.text
    assert computed_on("cuda")["TF32"] == "convolutions"


def test_cards_that_do_not_fit_are_said(fake_card, log):
    cfg = cpu_cfg()
    cfg.MODEL.DEVICE, cfg.CUDNN_BENCHMARK = "cuda", True
    cfg.INPUT.MIN_SIZE_TRAIN = (512, 800)
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, "bfloat16"
    with computing(cfg):
        pass
    assert "bfloat16" not in log.text
    assert "CUDNN_BENCHMARK True: of another size in each step are images" in log.text
    fake_card(7, 0)
    with (
        pytest.raises(ConfigError, match=r"MODEL.DEVICE 'cuda': Card is sm_70, .*for sm_80: inst"),
        computing(cfg),
    ):
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70"])
        with computing(cfg):
            pass
    assert "bfloat16: Card computes it in float32" in log.text


class Steps(TrainerBase):
    def __init__(self):
        super().__init__()
        self.model = nn.Linear(1, 1)
        self.data_loader = SimpleNamespace(images=SimpleNamespace(used=5))

    def run_step(self):
        pass


@pytest.mark.parametrize(
    ("reserved", "setting", "advised"),
    [(9 << 30, "", True), (6 << 30, "", False), (9 << 30, "expandable_segments:True", False)],
)
def test_fragments_of_memory_are_named_once_after_an_epoch(
    monkeypatch, log, reserved, setting, advised
):
    asked = []
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", setting)
    monkeypatch.setattr(module, "peak_memory", lambda _: asked.append(0) or (6 << 30, reserved))
    trainer = Steps()
    trainer.register_hooks([MemoryAdviceHook(images=2)])
    trainer.train(0, 2)
    assert not asked
    trainer.train(2, 12)
    assert len(asked) == 1
    assert log.text.count("expandable_segments:True") == advised
    assert ("WARNING 3.0 of 9.0 GiB" in log.text) == advised


@pytest.fixture
def train_in(datasets, repository, tiny_opts):
    """(folder, KEY, VALUE, ...) -> a training by deterministic operations."""

    def run(folder, *opts: str) -> None:
        own = ["OUTPUT_DIR", str(folder), "SEED", "1", "SOLVER.DETERMINISTIC", "True"]
        args = argparse.Namespace(
            config_file=str(repository / "configs/quick/instance.yaml"),
            opts=[*tiny_opts, *own, *opts],
            eval_only=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(setup(args))

    return run


@pytest.mark.gpu
@pytest.mark.no_fake_gpu("RoIAlign is compiled")
def test_a_gpu_trains_to_the_same_weights_twice(train_in, tmp_path):
    found = []
    for name in ("one", "two"):
        train_in(tmp_path / name, "MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", "4")
        found.append(torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_training_computes_and_records_how(train_in, tmp_path):
    before = state()
    train_in(tmp_path, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "1")
    assert state() == before
    about = read_results(tmp_path / "results.json")[1]
    assert about["computed_on"] == {"device": "cpu", "deterministic": "yes"}

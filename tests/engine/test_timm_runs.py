"""Trainings with a network of timm: what they begin with, resume from and are evaluated with."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import torch

from d2_cityscapes.engine.dry_run import dry_run
from d2_cityscapes.engine.key_effects import idle_keys
from d2_cityscapes.engine.setup import ConfigError, check_start, load_config
from d2_cityscapes.engine.step.layer_decay import layers_below
from d2_cityscapes.engine.trainer import evaluate, train
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling import build_model

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("datasets")

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quick" / "instance.yaml"
HALF = str([127.5] * 3)


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a socket is opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def options(tiny_opts, tmp_path) -> list[str]:
    torch.manual_seed(5)
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "timm.pth")
    return [
        *tiny_opts, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run"),
        "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", "0",
        "MODEL.TIMM.NAME", "test_convnext", "MODEL.TIMM.PRETRAINED", "True",
        "MODEL.TIMM.FILE", str(tmp_path / "timm.pth"), "MODEL.FROM_SCRATCH", "False",
        "MODEL.PIXEL_MEAN", HALF, "MODEL.PIXEL_STD", HALF, "MODEL.FPN.OUT_CHANNELS", "16",
        "MODEL.FREEZE.MODULES", "['backbone.bottom_up']", "SOLVER.MAX_ITER", "1",
        "DATASETS.TEST", "()",
    ]  # fmt: skip


def test_a_run_from_its_first_weights_to_its_evaluation(options, tmp_path, log):
    """The file of timm is needed to begin, and never again."""
    train(load_config(CONFIG, options))
    assert "test_convnext.r160_in1k: timm's weights, licence apache-2.0" in log.text
    assert "RANDOM weights" not in log.text
    assert "without effect: MODEL.RESNETS.DEPTH 18" in log.text  # the body that it is not
    final = tmp_path / "run" / "model_final.pth"
    trained, whole = torch.load(final)["model"], torch.load(tmp_path / "timm.pth")
    body = "backbone.bottom_up.net."
    frozen = {key.removeprefix(body): x for key, x in trained.items() if key.startswith(body)}
    assert len(frozen) > 30 and all(torch.equal(x, whole[key]) for key, x in frozen.items())

    shutil.move(tmp_path / "timm.pth", tmp_path / "elsewhere.pth")
    train(load_config(CONFIG, [*options, "SOLVER.MAX_ITER", "2"]), resume=True)
    assert torch.load(final)["iteration"] == 1
    evaluated = [*options, "MODEL.WEIGHTS", str(final), "OUTPUT_DIR", str(tmp_path / "evaluated")]
    evaluate(load_config(CONFIG, [*evaluated, "DATASETS.TEST", "('cityscapes_shards_val_1',)"]))
    assert (tmp_path / "evaluated" / "results.json").is_file()
    dry_run(load_config(CONFIG, options))
    with pytest.raises(D2CityscapesError, match=r"MODEL\.TIMM\.FILE .*timm.pth: no such file"):
        train(load_config(CONFIG, [*options, "OUTPUT_DIR", str(tmp_path / "again")]))


def test_a_random_start_is_refused_and_timms_weights_are_named(options):
    check_start(load_config(CONFIG, options))
    random = load_config(CONFIG, [*options, "MODEL.TIMM.PRETRAINED", "False"])
    with pytest.raises(ConfigError, match=r"take those of timm by MODEL\.TIMM\.PRETRAINED True"):
        check_start(random)


def test_keys_of_timm_that_do_not_act_are_refused(options, tmp_path):
    without = ["MODEL.TIMM.PRETRAINED", "False", "MODEL.FROM_SCRATCH", "True"]
    for more, message in [
        (
            ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"],
            "MODEL.TIMM.NAME 'test_convnext' is not read by StagedRCNN with build_resnet_fpn_backb",
        ),
        ([], f"MODEL.TIMM.FILE '{tmp_path}/timm.pth' acts with MODEL.TIMM.PRETRAINED True only"),
        (["MODEL.TIMM.OUTPUT_STRIDE", "16"], "MODEL.TIMM.OUTPUT_STRIDE 16 is not read by"),
    ]:
        with pytest.raises(ConfigError) as found:
            train(load_config(CONFIG, [*options, *without, *more]))
        assert message in " ".join((str(found.value), *found.value.details))


def test_layer_decay_knows_the_layers_below_a_pyramid(options):
    """L = 6 blocks; embeddings are layer 0, and pyramid and heads have no decay."""
    plain = ["MODEL.TIMM.NAME", "test_vit", "MODEL.TIMM.FILE", "", "MODEL.FREEZE.MODULES", "[]"]
    plain += ["MODEL.TIMM.PRETRAINED", "False"]
    below = layers_below(build_model(load_config(CONFIG, [*options, *plain])), 0.7)
    body = "backbone.bottom_up.net."
    assert below[f"{body}pos_embed"] == below[f"{body}patch_embed.proj.weight"] == 7
    assert [below[f"{body}blocks.{n}.attn.qkv.weight"] for n in range(6)] == [6, 5, 4, 3, 2, 1]
    assert all(name.startswith(body) for name in below)


def test_its_own_norms_decide_whether_keeping_them_in_eval_acts(options):
    """Not MODEL.RESNETS.NORM, which is no part of the model."""
    off = ["MODEL.FREEZE.NORM_EVAL", "False", "MODEL.RESNETS.NORM", "FrozenBN"]
    assert "MODEL.FREEZE.NORM_EVAL" not in idle_keys(load_config(CONFIG, [*options, *off]))
    frozen = load_config(CONFIG, [*options, *off, "MODEL.TIMM.NORM", "FrozenBN"])
    assert "MODEL.FREEZE.NORM_EVAL" in idle_keys(frozen)

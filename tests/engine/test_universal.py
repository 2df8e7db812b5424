"""`UniversalSegmentor` in the hands of trainer, evaluators, prediction and dry run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_trainings
import torch
from detectron2.config import CfgNode

from d2_cityscapes.engine.dry_run import dry_run
from d2_cityscapes.engine.prediction import predict_pictures
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.trainer import evaluate, setup, train
from d2_cityscapes.png import write_picture
from tests.engine.test_on_gpu import is_that_of_the_cpu

pytestmark = [pytest.mark.usefixtures("datasets"), pytest.mark.filterwarnings("ignore")]
pytest.importorskip("transformers")

SMALL = [
    "SOLVER.IMS_PER_BATCH", "2", "TEST.EXPECTED_RESULTS", "[]", "SOLVER.WARMUP_ITERS", "0",
    "DATASETS.TEST", "('cityscapes_shards_val_select',)",
]  # fmt: skip
TINY = {
    "mask2former": [
        "MODEL.UNIVERSAL.CONFIG.train_num_points", "64", "MODEL.UNIVERSAL.CONFIG.num_queries", "8",
        "INPUT.MIN_SIZE_TRAIN", "(32,)", "INPUT.MIN_SIZE_TEST", "32",
    ],
    "eomt": [
        "MODEL.UNIVERSAL.CONFIG.train_num_points", "64", "MODEL.UNIVERSAL.CONFIG.num_queries", "8",
        "MODEL.UNIVERSAL.CONFIG.patch_size", "16", "MODEL.UNIVERSAL.CONFIG.hidden_size", "32",
    ],
}  # fmt: skip


@pytest.fixture(params=list(TINY))
def configure(request, repository, tmp_path) -> Callable[..., CfgNode]:
    """(overrides) -> config of each network, with OUTPUT_DIR in the test's folder."""

    def make(*opts: str, eval_only: bool = False) -> CfgNode:
        args = argparse.Namespace(
            config_file=str(repository / "configs" / "quick" / f"{request.param}.yaml"),
            opts=[*SMALL, *TINY[request.param], "OUTPUT_DIR", str(tmp_path / "out"), *opts],
            eval_only=eval_only,
        )
        return setup(args)

    return make


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_a_stop_leaves_no_trace(configure, tmp_path):
    """4 steps are 2 steps, an end and 2 more, bit by bit: with flips, accumulation and averages.

    What the run wrote is enough to be evaluated again, and to predict.
    """
    opts = (
        "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "INPUT.RANDOM_FLIP", "horizontal",
        "SOLVER.ACCUMULATE_STEPS", "2", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.EMA_DECAY", "0.9",
    )  # fmt: skip
    cfg, out = configure(*opts), tmp_path / "out"
    train(cfg)
    names = ("model_final.pth", "model_final_ema.pth")
    whole = [weights(out / name) for name in names]
    rows = json.loads((out / "results.json").read_text())["results"]
    assert {row["task"] for row in rows} == {
        "bbox", "segm", "segm_cityscapes", "sem_seg", "panoptic_seg"
    }  # fmt: skip
    (out / "last_checkpoint").write_text("model_0000001.pth")
    train(cfg, resume=True)
    for before, name in zip(whole, names, strict=True):
        after = weights(out / name)
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert any(not torch.equal(whole[0][key], whole[1][key]) for key in whole[0])

    used = ("MODEL.WEIGHTS", str(out / names[1]), "OUTPUT_DIR", str(tmp_path / "again"))
    evaluate(configure(*opts, *used, eval_only=True))
    again = json.loads((tmp_path / "again" / "results.json").read_text())["results"]
    assert again == rows

    picture = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    write_picture(tmp_path / "street.png", picture)
    predict_pictures(configure(*opts, *used), [tmp_path / "street.png"], tmp_path / "drawn")
    assert len(list((tmp_path / "drawn").iterdir())) == 2


def test_in_half_precision(configure, tmp_path):
    """Near the losses of full precision, and not equal to them."""
    found = []
    for enabled in (False, True):
        opts = ["SOLVER.AMP.DTYPE", "bfloat16"] if enabled else []
        out = tmp_path / str(enabled)
        cfg = configure(
            "SOLVER.MAX_ITER", "1", "SOLVER.AMP.ENABLED", str(enabled), *opts,
            "DATASETS.TEST", "()", "OUTPUT_DIR", str(out),
        )  # fmt: skip
        cfg.defrost()
        cfg.SOLVER.AMP.ENABLED = enabled  # also on the CPU
        train(cfg)
        found.append(json.loads((out / "metrics.json").read_text().splitlines()[0])["total_loss"])
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_a_dry_run_says_what_it_needs(configure):
    found = dry_run(configure())
    assert found.sizes["saved activations of a batch"] > 0
    assert found.objects > 0


@pytest.mark.parametrize(
    ("key", "value", "others"),
    [
        ("MODEL.FPN.OUT_CHANNELS", "32", ()),
        ("MODEL.UNIVERSAL.OVERLAP_THRESHOLD", "0.7", ("MODEL.UNIVERSAL.INSTANCES", "False")),
    ],
)
def test_keys_that_do_not_act_are_refused(configure, key, value, others):
    sure = ("MODEL.UNIVERSAL.OBJECT_THRESHOLD", "0.8")  # the default
    with pytest.raises(ConfigError, match=f"1 problem: {key} {value} is not read"):
        train(configure(key, value, *sure, *others))


@pytest.mark.slow
@pytest.mark.parametrize("options", ["float32 ACCUMULATE_STEPS EVALUATION", "float16 EMA_DECAY"])
@pytest.mark.parametrize("kind", list(TINY))
def test_on_a_pretended_gpu_it_is_that_of_the_cpu(kind, options, tmp_path, monkeypatch):
    monkeypatch.setitem(tiny_trainings.FAMILIES, kind, (f"quick/{kind}.yaml", TINY[kind]))
    checkpointed = ["ACTIVATION_CHECKPOINTING"] if "float16" in options else []
    is_that_of_the_cpu(kind, [*options.split(), *checkpointed], tmp_path)

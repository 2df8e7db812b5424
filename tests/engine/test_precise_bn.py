"""TEST.PRECISE_BN: the same statistics after a resume, or refused at the start."""

from __future__ import annotations

import argparse

import pytest
import torch

from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.start import checked_config, setup
from d2_cityscapes.engine.trainer import train

pytestmark = pytest.mark.usefixtures("datasets")


@pytest.fixture
def arguments(repository, tmp_path):
    def make(config: str, *opts: str) -> argparse.Namespace:
        own = [
            "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "2",
            "SOLVER.IMS_PER_BATCH", "2", "TEST.EXPECTED_RESULTS", "[]", "DATASETS.TEST",
            "('cityscapes_shards_val_1',)", "DATALOADER.NUM_WORKERS", "0",
            "TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2",
            "OUTPUT_DIR", str(tmp_path / "out"),
        ]  # fmt: skip
        file = str(repository / "configs/quick" / config)
        return argparse.Namespace(config_file=file, opts=[*own, *opts], eval_only=False)

    return make


@pytest.mark.parametrize("seed", ["1", "-1"])
def test_a_resumed_run_has_the_statistics_of_a_whole_one(arguments, tmp_path, seed):
    """The checkpoint of the third step lies behind the first update."""
    out = tmp_path / "out"
    cfg = setup(arguments("semantic.yaml", "SEED", seed))
    train(cfg)
    whole = torch.load(out / "model_final.pth", weights_only=True)["model"]
    (out / "last_checkpoint").write_text("model_0000002.pth")
    train(cfg, resume=True)
    resumed = torch.load(out / "model_final.pth", weights_only=True)["model"]
    assert any("running_mean" in name for name in whole)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_shared_norms_are_refused_at_the_start(arguments):
    with pytest.raises(ConfigError, match=r"PRECISE_BN.ENABLED True: not with MODEL.RPN.NORM .*BN"):
        checked_config(arguments("panoptic.yaml"))
    for opts in (["MODEL.RPN.NORM", "GN"], ["TEST.PRECISE_BN.ENABLED", "False"]):
        checked_config(arguments("panoptic.yaml", *opts))

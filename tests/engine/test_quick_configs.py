"""configs/quick: every kind of model learns, and every evaluator sees it."""

from __future__ import annotations

import argparse

import pytest

from d2_cityscapes.engine.trainer import setup, train

pytestmark = pytest.mark.usefixtures("datasets")


@pytest.mark.parametrize(
    "kind",
    [
        "semantic",
        "deeplab",
        "instance",
        "panoptic",
        pytest.param("mask2former", marks=pytest.mark.slow),
        pytest.param("eomt", marks=pytest.mark.slow),
    ],
)
def test_it_meets_its_expected_results(kind, repository, tmp_path):
    config_file = repository / "configs" / "quick" / f"{kind}.yaml"
    opts = ["OUTPUT_DIR", str(tmp_path)]
    cfg = setup(argparse.Namespace(config_file=str(config_file), opts=opts, eval_only=False))
    assert cfg.TEST.EXPECTED_RESULTS
    train(cfg)
    (tmp_path / "model_final.pth").unlink()  # DeepLab's are 330 MB

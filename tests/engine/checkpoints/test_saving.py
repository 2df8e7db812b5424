"""Checkpoints on a full disk: one line, old files intact, no results of weights that are lost."""

from __future__ import annotations

import argparse

import pytest

from d2_cityscapes.engine.trainer import setup, train
from d2_cityscapes.errors import D2CityscapesError


@pytest.fixture
def configure(repository, tmp_path, datasets):
    """Overrides -> config of a small Mask R-CNN that runs for two steps."""

    def make(*opts: str):
        args = argparse.Namespace(
            config_file=str(repository / "configs/quick/instance.yaml"),
            opts=[
                "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0", "TEST.NUM_PICTURES", "0",
                "TEST.EXPECTED_RESULTS", "[]", "OUTPUT_DIR", str(tmp_path / "out"), *opts,
            ],
            eval_only=False,
        )  # fmt: skip
        return setup(args)

    return make


def test_no_results_without_weights(configure, tmp_path, disk_of, capsys):
    out = tmp_path / "out"
    cfg = configure()
    with disk_of(3_000_000), pytest.raises(D2CityscapesError) as caught:
        train(cfg)
    assert str(caught.value) == f"{out}/model_final.pth: cannot be written (File too large)"
    assert not (out / "results.json").exists() and not (out / "model_final.pth").exists()
    assert not list(out.glob(".*"))
    assert not any("Traceback" in text for text in capsys.readouterr())
    assert "Traceback" not in (out / "log.txt").read_text()


def test_what_was_there_stays(configure, tmp_path, disk_of):
    out = tmp_path / "out"
    train(configure("SOLVER.CHECKPOINT_PERIOD", "1"))
    kept = [out / "model_final.pth", out / "model_0000000.pth", out / "results.json"]
    before = [path.read_bytes() for path in kept]
    with disk_of(3_000_000), pytest.raises(D2CityscapesError, match="cannot be written"):
        train(configure("SEED", "3"))
    assert [path.read_bytes() for path in kept] == before
    with disk_of(3_000_000), pytest.raises(D2CityscapesError, match="cannot be written"):
        train(configure("SOLVER.MAX_ITER", "3"), resume=True)
    assert [path.read_bytes() for path in kept] == before
    assert (out / "last_checkpoint").read_text() == "model_final.pth"


def test_an_average_that_cannot_be_written_ends_a_run_without_results(
    configure, tmp_path, disk_of, monkeypatch
):
    for final in ("save_checkpoint", "save_portable"):
        monkeypatch.setattr(f"d2_cityscapes.engine.checkpoints.checkpointer.{final}", _nothing)
    with disk_of(3_000_000), pytest.raises(D2CityscapesError, match=r"final_ema.pth: cannot be wr"):
        train(configure("SOLVER.EMA_DECAY", "0.5"))
    assert not (tmp_path / "out/results.json").exists()


def _nothing(*_, **__) -> None:
    pass

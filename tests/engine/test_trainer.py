"""Training and evaluation of small models on synthetic shards, from config to results.json."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import pytest
import torch

from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.trainer import Trainer, evaluate, setup, train
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.expected import ExpectationError
from d2_cityscapes.evaluation.results import read_results

pytestmark = pytest.mark.usefixtures("datasets")


@pytest.fixture
def configure(repository, tmp_path, tiny_opts):
    """(stage, overrides, flags) -> config, with OUTPUT_DIR in the test's folder."""

    def make(config: str, *opts: str, eval_only: bool = False):
        args = argparse.Namespace(
            config_file=str(repository / "configs" / config),
            opts=[*tiny_opts, "OUTPUT_DIR", str(tmp_path / "out"), *opts],
            eval_only=eval_only,
        )
        return setup(args)

    return make


def _results(cfg) -> dict:
    with open(f"{cfg.OUTPUT_DIR}/results.json") as file:
        return json.load(file)


def _logged(run: Path) -> list[dict]:
    """The lines of metrics.json that hold losses."""
    lines = (run / "metrics.json").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "total_loss" in entry]


def test_a_run_leaves_everything_that_is_promised(configure, tmp_path):
    cfg = configure("demo/stage1.yaml")
    train(cfg)
    out = tmp_path / "out"
    written = {p.name for p in out.iterdir()}
    assert {"config.yaml", "metrics.json", "log.txt", "model_final.pth", "results.json"} <= written
    results = _results(cfg)
    rows = {(r["task"], r["metric"]): r for r in results["results"]}
    for key in (("bbox", "AP"), ("segm", "AP50")):
        assert rows[key]["dataset"] == "cityscapes_shards_val_report"
        assert rows[key]["protocol"] == "COCO" and rows[key]["images"] == 4
    final = (out / "model_final.pth").read_bytes()
    assert results["weights_sha256"] == hashlib.sha256(final).hexdigest()
    assert results["config_sha256"] == hashlib.sha256(cfg.dump().encode()).hexdigest()
    assert results["training_images"] == {"used": 8, "total": 8, "left_out": {}}
    assert len(list((out / "pictures/cityscapes_shards_val_report").glob("*.png"))) == 1
    assert {"loss_box_giou", "loss_mask", "loss_rpn_cls", "lr"} <= _logged(out)[-1].keys()
    # a config.yaml written by a run is enough to evaluate its weights again
    again = configure(
        str(out / "config.yaml"), "MODEL.WEIGHTS", str(out / "model_final.pth"),
        "OUTPUT_DIR", str(tmp_path / "again"), eval_only=True,
    )  # fmt: skip
    evaluate(again)
    assert _results(again)["results"] == results["results"]
    assert _results(again)["weights_sha256"] == results["weights_sha256"]


def test_frozen_modules_stay_and_the_rest_moves(configure, tmp_path):
    cfg = configure("demo/stage1.yaml")
    torch.manual_seed(0)
    start = Trainer.build_model(cfg).state_dict()
    weights = tmp_path / "start.pth"
    torch.save({"model": start}, weights)
    train(configure("demo/stage1.yaml", "MODEL.WEIGHTS", str(weights)))
    end = torch.load(tmp_path / "out" / "model_final.pth", weights_only=False)["model"]
    same = {name for name, tensor in start.items() if end[name].equal(tensor)}
    frozen = {name for name in start if name.startswith("backbone.bottom_up")}
    assert frozen and frozen <= same
    moved = {name.split(".")[0] for name in start.keys() - same}
    assert moved == {"backbone", "proposal_generator", "roi_heads"}


def test_random_frozen_weights_are_warned_of(configure, log):
    train(configure("demo/stage1.yaml", "SOLVER.MAX_ITER", "1"))
    assert "freezes backbone.bottom_up with RANDOM weights" in log.text


def test_the_same_seed_gives_the_same_weights(configure, tmp_path):
    for name in "ab":
        train(configure("demo/stage3.yaml", "OUTPUT_DIR", str(tmp_path / name)))
    a, b = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=False)["model"]
        for name in "ab"
    )
    assert all(a[name].equal(b[name]) for name in a)


def test_resume_continues_at_the_next_iteration(configure, tmp_path):
    train(configure("demo/stage0.yaml", "SOLVER.CHECKPOINT_PERIOD", "2"), allow_unused=True)
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000001.pth")
    before = _logged(tmp_path / "out")
    train(configure("demo/stage0.yaml", "SOLVER.MAX_ITER", "4"), resume=True, allow_unused=True)
    after = _logged(tmp_path / "out")
    assert before[-1]["iteration"] == 2 and after[-1]["iteration"] == 3
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Starting training from iteration 2" in log


def test_resume_continues_with_the_optimizer_that_was(configure, tmp_path):
    """Adam's moments and step counts come back; Detectron2 0.6 itself begins anew."""
    cfg = configure("demo/stage0.yaml", "SOLVER.CHECKPOINT_PERIOD", "2")
    train(cfg, allow_unused=True)
    saved = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    before = saved["trainer"]["_trainer"]["optimizer"]["state"]
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    after = trainer.optimizer.state_dict()["state"]
    assert before and before.keys() == after.keys()
    for index, state in before.items():
        assert state["step"] == after[index]["step"] == 3
        assert state["exp_avg_sq"].equal(after[index]["exp_avg_sq"])


def test_a_stop_leaves_no_trace(configure, tmp_path):
    """3 steps, resume, 3 steps are 6 steps, bit by bit, in images, flips and sampled proposals.

    Neither the evaluation between the checkpoint and the stop, nor the worker process after the
    resume, nor that the seed was a random one changes that.
    """

    def run(*opts: str, resume: bool) -> dict:
        opts = (
            "SEED", "-1", "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3",
            "TEST.EVAL_PERIOD", "3", *opts,
        )  # fmt: skip
        train(configure("demo/stage3.yaml", *opts), resume=resume)
        return torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)

    whole = run(resume=False)
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000002.pth")
    halves = run("DATALOADER.NUM_WORKERS", "1", resume=True)
    assert all(tensor.equal(halves["model"][name]) for name, tensor in whole["model"].items())
    assert whole["trainer"]["data"] == halves["trainer"]["data"]
    assert whole["trainer"]["data"]["position"] == 12
    saved = torch.load(tmp_path / "out" / "model_0000002.pth", weights_only=True)
    assert saved["trainer"]["data"] == whole["trainer"]["data"] | {"position": 6}


def test_a_checkpoint_without_a_position_goes_on_by_its_iteration(configure, log):
    trainer = Trainer(configure("demo/stage0.yaml"))
    old = trainer.state_dict() | {"iteration": 4}
    del old["data"]
    trainer.load_state_dict(old)
    assert trainer.data_loader.state_dict() == {"seed": 1, "position": 10}
    assert "going on at image 10" in log.text


def test_semantic_and_panoptic_models_are_scored_by_their_tasks(configure):
    train(configure("demo/stage0.yaml"), allow_unused=True)
    cfg = configure("demo/stage0.yaml")
    assert {r["task"] for r in _results(cfg)["results"]} == {"sem_seg"}
    train(configure("demo/stage4.yaml"))
    tasks = {r["task"] for r in _results(cfg)["results"]}
    assert tasks == {"bbox", "segm", "segm_cityscapes", "sem_seg", "panoptic_seg"}


def test_expected_results_are_a_gate(configure, tmp_path):
    passes = '[["segm", "AP50", 50.0, 50.0]]'
    fails = '[["segm", "AP50", 99.0, 0.5]]'
    train(configure("demo/stage1.yaml", "SOLVER.MAX_ITER", "1", "TEST.EXPECTED_RESULTS", passes))
    weights = ["MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth")]
    cfg = configure("demo/stage1.yaml", *weights, "TEST.EXPECTED_RESULTS", fails, eval_only=True)
    with pytest.raises(ExpectationError, match="segm AP50 99"):
        evaluate(cfg)
    with pytest.raises(ExpectationError, match="segm AP50 99"):
        train(configure("demo/stage1.yaml", *weights, "TEST.EXPECTED_RESULTS", fails))


def test_expected_results_of_several_datasets(configure, tmp_path):
    halves = [f"cityscapes_shards_val_{half}" for half in ("select", "report")]
    opts = ["SOLVER.MAX_ITER", "1", "DATASETS.TEST", str(tuple(halves)), "TEST.EXPECTED_RESULTS"]
    passes = f'[["sem_seg", "mIoU", 50.0, 50.0], ["{halves[1]}", "sem_seg", "mIoU", 50.0, 50.0]]'
    results = train(configure("demo/stage0.yaml", *opts, passes), allow_unused=True)
    assert list(results) == halves
    rows = [r for r in read_results(tmp_path / "out/results.json")[0] if r.metric == "mIoU"]
    assert [(r.dataset, r.value) for r in rows] == [
        (name, results[name]["sem_seg"]["mIoU"]) for name in halves
    ]
    fails = f'[["{halves[0]}", "sem_seg", "mIoU", 99.0, 0.5]]'
    with pytest.raises(ExpectationError, match=halves[0]):
        train(configure("demo/stage0.yaml", *opts, fails), allow_unused=True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('["panoptic_seg", "PQ", 50.0, 50.0]', "the model predicts sem_seg"),
        ('["elsewhere", "sem_seg", "mIoU", 50.0, 50.0]', "DATASETS.TEST is cityscapes_shards_val"),
        ('["sem_seg", "mIoU", 50.0]', "is not .task, metric, value, tolerance"),
    ],
)
def test_expected_results_that_cannot_be_met_are_refused_at_the_start(configure, entry, message):
    with pytest.raises(D2CityscapesError, match=message):
        configure("demo/stage0.yaml", "TEST.EXPECTED_RESULTS", f"[{entry}]")


@pytest.mark.parametrize("config", ["demo/stage1.yaml", "demo/stage4.yaml"])
def test_validation_losses_leave_no_trace(config, configure, tmp_path):
    """The losses of both kinds stand in metrics.json, and the weights are those of a run without.

    The models have batch norm and sample proposals at random; stage 1 is partly frozen.
    """
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    validation = [
        "TEST.VAL_LOSS_PERIOD", "2", "TEST.VAL_LOSS_DATASET", "cityscapes_shards_val_select",
    ]  # fmt: skip
    train(configure(config, "OUTPUT_DIR", str(plain)))
    train(configure(config, "OUTPUT_DIR", str(watched), *validation))
    a, b = (
        torch.load(folder / "model_final.pth", weights_only=True) for folder in (plain, watched)
    )
    assert all(tensor.equal(b["model"][name]) for name, tensor in a["model"].items())
    before, after = (run["trainer"]["_trainer"]["optimizer"]["state"] for run in (a, b))
    assert all(
        value.equal(after[index][name]) if isinstance(value, torch.Tensor) else True
        for index, state in before.items()
        for name, value in state.items()
    )
    expected, found = _logged(plain)[-1], _logged(watched)[-1]
    ours = {name for name in found if name.startswith("val/")}
    losses = {name for name in expected if "loss" in name}
    assert ours == {f"val/{name}" for name in losses}
    assert {name: found[name] for name in losses} == {name: expected[name] for name in losses}
    assert found["roi_head/num_fg_samples"] == expected["roi_head/num_fg_samples"]
    total = sum(found[name] for name in ours - {"val/total_loss"})
    assert found["val/total_loss"] == pytest.approx(total)


def test_validation_losses_need_a_dataset(configure):
    with pytest.raises(ConfigError, match=r"VAL_LOSS_DATASET or DATASETS\.TEST"):
        configure("demo/stage0.yaml", "TEST.VAL_LOSS_PERIOD", "2", "DATASETS.TEST", "()")
    with pytest.raises(ConfigError, match="'cityscapes_shards_non' is not registered"):
        configure(
            "demo/stage0.yaml", "TEST.VAL_LOSS_PERIOD", "2",
            "TEST.VAL_LOSS_DATASET", "cityscapes_shards_non",
        )  # fmt: skip


def test_eval_only_needs_weights(configure):
    with pytest.raises(ConfigError, match=r"needs MODEL.WEIGHTS"):
        evaluate(configure("demo/stage1.yaml", eval_only=True))

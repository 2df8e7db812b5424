"""Trials that really train, a little: what they report, how they stop, and go on."""

from __future__ import annotations

import json

import pytest
import torch

from d2_cityscapes.engine.trainer import Trainer
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.preflight.applied import check_applied
from d2_cityscapes.search.space.plan_file import read_plan
from d2_cityscapes.search.trials.folders import TrialFolders, TrialJob, remove_checkpoints
from d2_cityscapes.search.trials.process import Pruned
from d2_cityscapes.search.trials.trial import run_trial

pytestmark = pytest.mark.usefixtures("datasets")

VALUES = {
    "MODEL.RPN.IOU_THRESHOLDS[0]": 0.25,
    "MODEL.RPN.IOU_THRESHOLDS[1]": 0.8,
    "SOLVER.BASE_LR": 0.002,
    "MODEL.FREEZE.MODULES": ["backbone.bottom_up"],
}
LOSS = {"dataset": "cityscapes_shards_val_1", "task": "val_loss", "metric": "total_loss"}


@pytest.fixture
def prepare(write_tiny, tmp_path):
    """Make the folder of a trial."""

    def make(number: int = 0, values=VALUES, **sections):
        plan = read_plan(write_tiny(**{"budget": {"iterations": 3, "reports": 3}} | sections))
        folders = TrialFolders(tmp_path / "out", "study")
        cfg = plan.config(values, output_dir=folders.path(number))
        period = plan.report_period(cfg)
        job = TrialJob("study", number, values, plan.objective, period)
        return folders.prepare(job, cfg)

    return make


def test_a_value_that_another_key_replaced_is_named(write_tiny):
    """The model holds what the config has, but that is not what was sampled."""
    cfg = read_plan(write_tiny()).unsampled
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    with pytest.raises(SearchError) as caught:
        check_applied(cfg, model, optimizer, {"MODEL.ANCHOR_GENERATOR.SIZES[0][0]": 12})
    assert str(caught.value) == (
        "MODEL.ANCHOR_GENERATOR.SIZES[0][0]: 12 was sampled, but the config has 8"
    )


@pytest.mark.parametrize("sizes", [[[32, 16]], [[16], [24], [32], [64, 48], [128]]])
def test_anchors_for_all_levels_and_in_any_order(write_tiny, sizes):
    key = "MODEL.ANCHOR_GENERATOR.SIZES"
    cfg = read_plan(write_tiny()).unsampled.clone()
    cfg.defrost()
    cfg.merge_from_list([key, sizes, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]])
    if len(sizes) > 1:  # as many anchors on every level, as the heads need
        sizes = [level * (2 // len(level)) for level in sizes]
        cfg.merge_from_list([key, sizes])
    model = Trainer.build_model(cfg)
    check_applied(cfg, model, Trainer.build_optimizer(cfg, model), {key: sizes})


def _weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=False)["model"]


def test_a_trial_reports_and_ends_with_its_value(prepare):
    folder = prepare()
    reports = []
    value, results = run_trial(folder, lambda *report: bool(reports.append(report)))
    assert [step for step, _ in reports] == [1, 2, 3] and reports[-1] == (3, value)
    rows = json.loads((folder / "results.json").read_text())["results"]
    found = {(row["dataset"], row["task"], row["metric"]): row["value"] for row in rows}
    assert found["cityscapes_shards_val_1", "segm", "AP"] == value == results["segm AP"]
    assert {"bbox AP", "segm AP50", "segm_cityscapes AP"} <= results.keys()
    assert {"config.yaml", "metrics.json", "log.txt"} <= {p.name for p in folder.iterdir()}


def test_weights_of_an_ended_trial_are_removed(tmp_path):
    kept = {"config.yaml", "results.json"}
    weights = {"model_0000001.pth", "model_final.pth", "model_final_ema.safetensors"}
    for name in {*kept, *weights, "model_final.safetensors", "last_checkpoint"}:
        (tmp_path / name).touch()
    remove_checkpoints(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_pruned_trial_stops_there_and_a_killed_one_goes_on(prepare):
    """Stopped after its second report and started again, it ends with the weights it would have."""
    whole, parts = prepare(0, objective=LOSS), prepare(1, objective=LOSS)
    reports: dict = {}
    value, _ = run_trial(whole, lambda step, loss: bool(reports.update({step: loss})))
    stopped: dict = {}
    with pytest.raises(Pruned):
        run_trial(parts, lambda step, loss: bool(stopped.update({step: loss})) or step == 2)
    assert stopped == {step: reports[step] for step in (1, 2)}
    assert not (parts / "model_final.pth").exists()
    assert "Exception during training" not in (parts / "log.txt").read_text()
    again: dict = {}
    assert run_trial(parts, lambda step, loss: bool(again.update({step: loss})))[0] == value
    assert again == {3: reports[3]} and value == reports[3]
    one, other = _weights(whole), _weights(parts)
    assert all(one[name].equal(other[name]) for name in one)
    # killed behind its last step: it has the value, of that very model, without another step
    assert run_trial(parts, lambda *_: False)[0] == pytest.approx(value)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"metric": "APP"}, "no segm APP on cityscapes_shards_val_1 .* segm has AP, AP-"),
        (LOSS | {"metric": "loss_msk"}, "no val_loss loss_msk; it has loss_box_giou, loss_box_reg"),
    ],
)
def test_a_number_that_is_not_there_refuses_the_search(prepare, objective, message):
    folder = prepare(objective=objective, budget={"iterations": 1})
    with pytest.raises(SearchError, match=message):
        run_trial(folder, lambda *_: False)


def test_a_value_that_has_no_use_for_another_ends_no_search(prepare):
    """SOLVER.WARMUP_ITERS 0, as it may have been sampled, leaves SOLVER.WARMUP_FACTOR idle."""
    space = {"SOLVER.WARMUP_FACTOR": {"type": "float", "low": 0.1, "high": 0.4}}
    folder = prepare(
        values={"SOLVER.WARMUP_FACTOR": 0.25},
        space=space,
        constraints=[],
        objective=LOSS,
        budget={"iterations": 1},
    )
    run_trial(folder, lambda *_: False)
    line = "without effect: SOLVER.WARMUP_FACTOR 0.25 acts with SOLVER.WARMUP_ITERS above 0 only"
    assert line in (folder / "log.txt").read_text()


def test_values_that_do_not_arrive_are_named_before_training(prepare, monkeypatch):
    """As in the authors' search: a matcher that keeps the thresholds it was made with."""
    build = Trainer.build_model

    def forgetful(cfg):
        model = build(cfg)
        model.proposal_generator.anchor_matcher.thresholds[1:-1] = [0.3, 0.7]
        return model

    monkeypatch.setattr(Trainer, "build_model", staticmethod(forgetful))
    folder = prepare()
    with pytest.raises(SearchError) as caught:
        run_trial(folder, lambda *_: False)
    assert str(caught.value) == (
        "MODEL.RPN.IOU_THRESHOLDS[0]: the config has [0.25, 0.8], but the model has [0.3, 0.7]"
    )
    assert not (folder / "metrics.json").exists() or not (folder / "metrics.json").read_text()


@pytest.mark.parametrize(
    ("key", "value", "spoil"),
    [
        ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.6],
         lambda model, optimizer: model.roi_heads.proposal_matcher.thresholds.insert(1, 0.4)),
        ("MODEL.FREEZE.MODULES", ["backbone.bottom_up.stem"],
         lambda model, optimizer: model.backbone.bottom_up.stem.requires_grad_(True)),
        ("SOLVER.BASE_LR", 0.003,
         lambda model, optimizer: [g.update(lr=0.1, initial_lr=0.1)
                                   for g in optimizer.param_groups]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[10], [20], [40], [80], [160]],
         lambda model, optimizer: [
             cell.mul_(1.5) for cell in model.proposal_generator.anchor_generator.cell_anchors]),
    ],
)  # fmt: skip
def test_what_is_compared_with_the_model(write_tiny, key, value, spoil):
    cfg = read_plan(write_tiny()).unsampled.clone()
    cfg.defrost()
    cfg.merge_from_list([key, value])
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    check_applied(cfg, model, optimizer, {key: value, "SOLVER.MOMENTUM": 0.5})
    spoil(model, optimizer)
    with pytest.raises(SearchError, match=key):
        check_applied(cfg, model, optimizer, {key: value})

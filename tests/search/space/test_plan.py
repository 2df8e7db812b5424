"""Search files: the config that a trial gets, and mistakes in one line."""

from __future__ import annotations

import pytest

from d2_cityscapes.engine.setup import check_datasets, load_config
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.search.space.plan_file import read_plan

VALUES = {
    "MODEL.RPN.IOU_THRESHOLDS[0]": 0.25,
    "MODEL.RPN.IOU_THRESHOLDS[1]": 0.8,
    "SOLVER.BASE_LR": 0.002,
    "MODEL.FREEZE.MODULES": ["backbone.bottom_up"],
}


def test_a_trial_gets_base_budget_overrides_and_values(write_search, tmp_path):
    source = write_search(
        overrides={"SOLVER.WEIGHT_DECAY": 0.01, "TEST.DETECTIONS_PER_IMAGE": 7},
        budget={"iterations": 10, "reports": 4},
    )
    plan = read_plan(source, ["TEST.DETECTIONS_PER_IMAGE", "9"], seed=5)
    cfg = plan.config(VALUES, output_dir=tmp_path / "trial")
    assert cfg.MODEL.RPN.IOU_THRESHOLDS == [0.25, 0.8]
    assert cfg.SOLVER.BASE_LR == 0.002
    assert cfg.MODEL.FREEZE.MODULES == ["backbone.bottom_up"]
    assert cfg.SOLVER.WEIGHT_DECAY == 0.01
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 9  # the command line wins
    assert cfg.SOLVER.MAX_ITER == 10
    assert cfg.TEST.EVAL_PERIOD == cfg.SOLVER.CHECKPOINT_PERIOD == plan.report_period(cfg) == 3
    assert cfg.DATASETS.TEST == ("cityscapes_shards_val_1",)
    assert cfg.TEST.EXPECTED_RESULTS == [] and cfg.TEST.NUM_PICTURES == 0
    assert str(tmp_path / "trial") == cfg.OUTPUT_DIR
    assert cfg.SEED == 1  # the demo's own
    assert plan.config(VALUES, seed=8).SEED == 8
    assert read_plan(source, ["SEED", "-1"], seed=5).config(VALUES).SEED == 5


@pytest.mark.usefixtures("datasets")
def test_a_search_within_a_fold(write_search):
    """Both sides are known by their names alone."""
    test, train = (f"cityscapes_shards_train_{side}_1_of_4" for side in ("fold", "without_fold"))
    objective = {"dataset": test, "task": "segm", "metric": "AP50"}
    source = write_search(objective=objective, overrides={"DATASETS.TRAIN": [train]})
    cfg = read_plan(source).config(VALUES)
    assert (test,) == cfg.DATASETS.TEST
    check_datasets(cfg, train=True)


def test_one_element_leaves_the_others(plan):
    cfg = plan.config({"MODEL.RPN.IOU_THRESHOLDS[1]": 0.6})
    assert cfg.MODEL.RPN.IOU_THRESHOLDS == [0.22, 0.6]


def test_a_validation_loss_is_an_objective(write_search):
    objective = {"dataset": "cityscapes_shards_val_1", "task": "val_loss", "metric": "total_loss"}
    plan = read_plan(write_search(objective=objective))
    assert plan.objective.direction == "minimize"
    cfg = plan.config(VALUES)
    assert (cfg.TEST.VAL_LOSS_PERIOD, cfg.TEST.EVAL_PERIOD) == (1, 0)
    assert cfg.TEST.VAL_LOSS_DATASET == "cityscapes_shards_val_1"


@pytest.mark.usefixtures("datasets")
def test_a_budget_in_epochs_follows_the_data(write_search):
    source = write_search(budget={"epochs": 3, "reports": 3}, overrides={"SOLVER.IMS_PER_BATCH": 3})
    cfg = read_plan(source).config(VALUES)
    assert cfg.DATASETS.TRAIN == ("cityscapes_shards_val_select",)  # 4 images
    assert (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD) == (4, 2)


def test_the_final_config_is_the_base_with_the_values(write_search, repository, tmp_path):
    plan = read_plan(write_search(overrides={"SOLVER.WEIGHT_DECAY": 0.01}), ["SEED", "9"])
    cfg = plan.final_config(VALUES, output_dir=tmp_path)
    base = load_config(repository / "configs/demo/stage3.yaml")
    assert cfg.SOLVER.MAX_ITER == base.SOLVER.MAX_ITER
    assert cfg.SOLVER.WEIGHT_DECAY == base.SOLVER.WEIGHT_DECAY
    assert cfg.DATASETS.TEST == base.DATASETS.TEST
    assert cfg.MODEL.RPN.IOU_THRESHOLDS == [0.25, 0.8]
    assert cfg.SEED == 9 and str(tmp_path) == cfg.OUTPUT_DIR


def test_the_papers_search(repository, datasets):
    plan = read_plan(repository / "configs/search/stage2.yaml")
    assert plan.trials == 42 and str(plan.objective) == "segm AP"
    assert plan.budget == {"epochs": 5.0, "reports": 5}
    assert {name: (e.get("low"), e.get("high")) for name, e in plan.space.entries().items()} == {
        "MODEL.ROI_HEADS.IOU_THRESHOLDS[0]": (0.3, 0.7),
        "MODEL.RPN.IOU_THRESHOLDS[1]": (0.6, 0.9),
        "MODEL.RPN.IOU_THRESHOLDS[0]": (0.1, 0.4),
        "MODEL.FREEZE.MODULES": (None, None),
    }
    cfg = plan.config({"MODEL.ROI_HEADS.IOU_THRESHOLDS[0]": 0.5})
    assert cfg.DATASETS.TRAIN == ("cityscapes_shards_train_1",)
    assert cfg.DATASETS.TEST == ("cityscapes_shards_val_1",)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.BASE_LR_END) == (4e-5, 0, 1e-5)
    assert (cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.COSINE_ITERS) == ("WarmupCosineLR", 0)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (2, 4)  # 5 epochs of one image
    assert cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS == [0.5]


FLOAT = {"type": "float", "low": 0.1, "high": 0.4}


@pytest.mark.parametrize(
    ("sections", "opts", "message"),
    [
        ({"space": {"MODEL.RPN.IOU_TRESHOLDS[0]": FLOAT}}, [],
         r"unknown config key MODEL.RPN.IOU_TRESHOLDS; nearest: MODEL.RPN.IOU_THRESHOLDS"),
        ({"space": {"MODEL.RPN.IOU_THRESHOLDS[2]": FLOAT}}, [],
         r"wrong index 2: MODEL.RPN.IOU_THRESHOLDS has 2 there, \[0.22, 0.789\]"),
        ({"space": {"SOLVER.BASE_LR[0]": FLOAT}}, [], "SOLVER.BASE_LR holds no list"),
        ({"space": {"MODEL.RPN": FLOAT}}, [], "MODEL.RPN is a section"),
        ({"space": {"SOLVER.MAX_ITER": FLOAT}}, [], "SOLVER.MAX_ITER"),
        ({"space": {"MODEL.RPN.IOU_LABELS[0]": FLOAT}}, [], "cannot take the place of 0: use"),
        ({"space": {"SOLVER.MOMENTUM": {"type": "categorical", "choices": [0.9, "high"]}}}, [],
         "SOLVER.MOMENTUM"),
        ({"space": {"TEST.EVAL_PERIOD": FLOAT}}, [], "EVAL_PERIOD is decided by budget.reports"),
        ({"space": {}}, [], "space is empty"),
        ({"constraints": ["MODEL.RPN.IOU_THRESHOLDS[0] > 0.5"]}, [], "none of 5000 random samples"),
        ({"constraints": ["MODEL.RPN.IOU[0] > 0.5"]}, [], "unknown config key MODEL.RPN.IOU;"),
        ({"overrides": {"SOLVER.MAX_ITR": 3}}, [],
         r"search.yaml: unknown config key SOLVER.MAX_ITR; nearest: SOLVER.MAX_ITER"),
        ({"overrides": {"SOLVER.BASE_LR": 0.1}}, [], "overrides: SOLVER.BASE_LR is searched over"),
        ({}, ["SOLVER.BASE_LR", "0.1"], "command line: SOLVER.BASE_LR is searched over"),
        ({}, ["MODEL.RPN.IOU_THRESHOLDS", "[0.1, 0.2]"], "command line: .* is searched over"),
        ({}, ["DATASETS.TEST", "('x',)"], "DATASETS.TEST is decided by objective.dataset"),
        ({}, ["SOLVER.MAX_ITR", "3"], "unknown config key SOLVER.MAX_ITR"),
        ({}, ["SOLVER.MAX_ITER"], "has no value"),
        ({"objective": {"task": "sem_seg"}}, [], "'sem_seg': this model has bbox, segm"),
        ({"objective": {"tsak": "segm"}}, [], "objective: unknown 'tsak'; nearest: task"),
        ({"objective": {"direction": "up"}}, [], "direction 'up': maximize or minimize"),
        ({"budget": {}}, [], "either epochs or iterations"),
        ({"budget": {"epochs": 1, "iterations": 2}}, [], "either epochs or iterations"),
        ({"budget": {"iterations": 0}}, [], "iterations 0: use a whole number from 1"),
        ({"budget": {"epochs": -1}}, [], "epochs -1: use a positive number"),
        ({"budget": {"iterations": 4, "reports": 0}}, [], "reports 0: use a whole number"),
        ({"pruner": {"name": "medain"}}, [], "'medain': use one of median, hyperband, none"),
        ({"pruner": {"name": "none", "startup_trials": 3}}, [], "none takes no startup_trials"),
        ({"sampler": {"startup_trials": "x"}}, [], "startup_trials 'x': use a whole number"),
        ({"trials": 0}, [], "trials 0: use a whole number"),
        ({"spaec": {}}, [], "unknown 'spaec'; nearest: space"),
        ({"base": "none.yaml"}, [], "none.yaml: no such config file"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(write_search, sections, opts, message):
    with pytest.raises(D2CityscapesError, match=message) as caught:
        read_plan(write_search(**sections), opts)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_search(tmp_path):
    with pytest.raises(D2CityscapesError, match=r"none.yaml: no such search file$"):
        read_plan(tmp_path / "none.yaml")
    wrong = tmp_path / "wrong.yaml"
    alias = "trials: &a [" + "1, " * 400 + "]\nspace: [" + "*a, " * 400 + "]"
    for text, message in {
        "base: [": "wrong.yaml",
        "MODEL: {}": "not a search file",
        "[" * 5000: "nested without end",
        alias: "aliases .* more than 100000 values",
        "base: 2026-02-30": "wrong.yaml: day is out of range",
    }.items():
        wrong.write_text(text)
        with pytest.raises(D2CityscapesError, match=message) as caught:
            read_plan(wrong)
        assert "\n" not in str(caught.value)

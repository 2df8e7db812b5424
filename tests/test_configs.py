"""Every config builds its model, and says what its source says."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.step.schedules import build_lr_scheduler
from d2_cityscapes.modeling.build import build_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
MODELS = [name for name in FILES if not name.startswith("search/")]  # those describe searches
AS_RUN, ABLATIONS = "baselines/staged_as_run", "baselines/ablations"


def read(name: str, device: str = "cpu") -> CfgNode:
    opts = ["MODEL.DEVICE", device, "MODEL.TIMM.PRETRAINED", "False"]  # nothing is fetched
    return load_config(CONFIGS / name, opts, train=False)


@pytest.mark.parametrize("name", MODELS)
def test_it_builds_its_model(name):
    with torch.device("meta"):  # every layer and shape, without drawing 40 million random weights
        model = build_model(read(name, device="meta"))
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", FILES)
def test_the_readme_names_it(name):
    assert f"`{name}`" in (CONFIGS / "README.md").read_text()


@pytest.mark.parametrize("folder", ["demo", "demo_full"])
def test_a_demo_fails_where_it_has_not_learned(folder):
    gates = {s: read(f"{folder}/stage{s}.yaml").TEST.EXPECTED_RESULTS for s in range(5)}
    assert [gate[:2] for gate in gates[3]] == [["segm", "AP50"]]
    assert [gate[:2] for gate in gates[4]] == [["panoptic_seg", "PQ"]]
    untrained = 1  # percent at most, of either
    assert all(g[2] - g[3] > 5 * untrained for number in (3, 4) for g in gates[number])


# --- what the recipes say ---

STAGED = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.ROI_HEADS.NUM_CLASSES": 8,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 2,
    "INPUT.FORMAT": "RGB",
    "INPUT.RANDOM_FLIP": "none",
    "DATASETS.TEST": ("cityscapes_shards_val_report",),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.WARMUP_ITERS": 0,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
PAPER = {
    "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT": 0.1,
    "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
    "MODEL.WEIGHTS_EXCLUDE": [],
}
AUTHORS = {
    "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT": 0.0,
    "MODEL.RPN.SMOOTH_L1_BETA": pytest.approx(1 / 9),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": pytest.approx(1 / 9),
}
STAGE_1 = {
    "DATASETS.TRAIN": ("cityscapes_shards_train",),
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupConstantLR",
    "SOLVER.MAX_ITER": 2976,
    "SOLVER.CHECKPOINT_PERIOD": 744,
}
STAGE_2 = STAGE_1 | {
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.BASE_LR_END": 1e-5,
    "SOLVER.COSINE_ITERS": 7440,
    "SOLVER.MAX_ITER": 4464,
}
STAGE_3 = {
    "DATASETS.TRAIN": ("cityscapes_shards_val_select",),
    "SOLVER.BASE_LR": 1e-5,
    "SOLVER.WEIGHT_DECAY": 0.0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupConstantLR",
    "SOLVER.MAX_ITER": 128,
}
SMALL_INPUT = {
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
}
FULL_INPUT = {
    "INPUT.MIN_SIZE_TRAIN": (1024,),
    "INPUT.MAX_SIZE_TRAIN": 2048,
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.MAX_SIZE_TEST": 2048,
}
MASK_RCNN_PAPER = {
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.ROI_HEADS.NUM_CLASSES": 8,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT": 0.0,
    "MODEL.FREEZE.MODULES": [],
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TRAIN": (800, 1024),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    "INPUT.MAX_SIZE_TRAIN": 2048,
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.MAX_SIZE_TEST": 2048,
    "DATASETS.TRAIN": ("cityscapes_shards_train",),
    "DATASETS.TEST": ("cityscapes_shards_val",),
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.STEPS": (18000,),
    "SOLVER.MAX_ITER": 24000,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
# seamseg's panoptic.ini and cityscapes_r50.ini
SEAMLESS = {
    "MODEL.PIXEL_MEAN": [106.434, 116.617, 119.560],
    "MODEL.PIXEL_STD": [65.497, 67.600, 74.123],
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.FREEZE.MODULES": ["backbone.bottom_up.stem", "backbone.bottom_up.res2"],
    "MODEL.FREEZE.NORM_EVAL": False,
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FPN.EXTRA_LEVELS": 1,
    **{
        f"MODEL.{part}.NORM": "SyncBN"
        for part in ("RESNETS", "FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "SEM_SEG_HEAD")
    },
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0, 0.5, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.BOUNDARY_THRESH": 0,
    "MODEL.RPN.SMOOTH_L1_BETA": pytest.approx(1 / 9, abs=1e-4),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT": 0.0,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.SEM_SEG_HEAD.POOL_SIZE": [64, 64],
    "MODEL.SEM_SEG_HEAD.LOSS_TOP_K": 0.25,
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": 0.5,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 4096,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.5,
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN": (512, 2048),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    "INPUT.MAX_SIZE_TRAIN": 4096,
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.RANDOM_FLIP": "horizontal",
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": True,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.STEPS": (36000, 44000),
    "SOLVER.MAX_ITER": 48000,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}

RECIPES = {
    "stage1.yaml": STAGED | PAPER | SMALL_INPUT | STAGE_1,
    "stage2.yaml": STAGED | PAPER | SMALL_INPUT | STAGE_2,
    "stage3.yaml": STAGED | PAPER | SMALL_INPUT | STAGE_3,
    "full_resolution/stage1.yaml": STAGED | PAPER | FULL_INPUT | STAGE_1,
    "full_resolution/stage2.yaml": STAGED | PAPER | FULL_INPUT | STAGE_2,
    "full_resolution/stage3.yaml": STAGED | PAPER | FULL_INPUT | STAGE_3,
    f"{AS_RUN}/stage1.yaml": STAGED | AUTHORS | SMALL_INPUT | STAGE_1,
    f"{AS_RUN}/stage2.yaml": STAGED | AUTHORS | SMALL_INPUT | STAGE_2,
    f"{AS_RUN}/stage3.yaml": STAGED | AUTHORS | SMALL_INPUT | STAGE_3,
    "panoptic/seamless_R_50_FPN.yaml": SEAMLESS,
    "baselines/mask_rcnn_R_50_FPN.yaml": MASK_RCNN_PAPER,
    "baselines/mask_rcnn_R_50_FPN_coco.yaml": MASK_RCNN_PAPER
    | {
        "MODEL.WEIGHTS": "mask_rcnn_R_50_FPN_cityscapes.pth",
        "SOLVER.STEPS": (3000,),
        "SOLVER.MAX_ITER": 4000,
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_says_what_the_recipe_says(name):
    cfg = read(name)
    found = {key: functools.reduce(getattr, key.split("."), cfg) for key in RECIPES[name]}
    assert found == RECIPES[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stage1.yaml", {0: 1e-4, 2975: 1e-4}),
        # 0.6 and 1 of the cosine's 7440 iterations
        ("stage2.yaml", {0: 1e-4, 4464: 1e-5 + 4.5e-5 * (1 + math.cos(0.6 * math.pi))}),
        ("stage2.yaml", {0: 1e-4, 7440: 1e-5}),
        ("stage3.yaml", {0: 1e-5, 127: 1e-5}),
        ("panoptic/seamless_R_50_FPN.yaml", {0: 0.00333, 100: 0.006665, 200: 0.01, 36000: 0.001}),
        ("baselines/mask_rcnn_R_50_FPN.yaml", {0: 1e-5, 1000: 1e-2, 18000: 1e-3}),
        ("baselines/mask_rcnn_R_50_FPN_coco.yaml", {1000: 1e-2, 3000: 1e-3}),
    ],
)
def test_learning_rate(name, expected):
    cfg = read(name)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(max(expected)):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert {k: rates[k] for k in expected} == pytest.approx(expected)


def test_an_ablation_differs_in_what_its_name_says():
    full = read("baselines/mask_rcnn_R_50_FPN.yaml")
    for name in (name for name in FILES if name.startswith(ABLATIONS)):
        cfg = read(name)
        for section in ("INPUT", "DATASETS", "SOLVER", "TEST"):
            assert cfg[section] == full[section], name
        assert cfg.MODEL != full.MODEL, name

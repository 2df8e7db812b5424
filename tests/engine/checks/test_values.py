"""Wrong values of Detectron2's own keys: one line with key, value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from d2_cityscapes.engine.checks.values import check_values
from d2_cityscapes.engine.setup import ConfigError

RCNN, DEEPLAB, PANOPTIC = "quick/instance.yaml", "quick/deeplab.yaml", "quick/panoptic.yaml"
CROP = ("INPUT.CROP.ENABLED", True)


@pytest.mark.parametrize(
    ("config", "key", "value", "allowed"),
    [
        (RCNN, "MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.5, 0.6], r"1 number above 0.*IOU_LABELS \[0"),
        (RCNN, "MODEL.ROI_HEADS.IOU_LABELS", [0, -1, 1], "IOU_THRESHOLDS .* 2 numbers above 0"),
        (RCNN, "MODEL.ROI_HEADS.IOU_LABELS", [0, 2], r"a list of 0 \(background\)"),
        (RCNN, "MODEL.RPN.IOU_THRESHOLDS", [0.8, 0.3], "2 numbers above 0, up to 1, ascending"),
        (RCNN, "MODEL.RPN.IOU_THRESHOLDS", [0.0, 0.3], "2 numbers above 0"),
        (RCNN, "MODEL.RPN.POSITIVE_FRACTION", 1.5, "a number from 0 to 1"),
        (RCNN, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 0, "a whole number of 1 or more"),
        (RCNN, "MODEL.RPN.BBOX_REG_LOSS_TYPE", "iou", "'smooth_l1' or 'giou'"),
        (RCNN, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 5.0, "a number from 0 to 1"),
        (RCNN, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 0, "a whole number of 1 or more"),
        (RCNN, "TEST.DETECTIONS_PER_IMAGE", 0, "1 or more, or -1 for all"),
        (RCNN, "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]], "each of the 5 levels"),
        (RCNN, "MODEL.ANCHOR_GENERATOR.SIZES", [], "each of the 5 levels"),
        (RCNN, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, -1.0]], "numbers above 0"),
        (RCNN, "MODEL.KEYPOINT_ON", True, "False: shards have no keypoints"),
        (RCNN, "MODEL.LOAD_PROPOSALS", True, "False: shards have no proposals"),
        (RCNN, "MODEL.RESNETS.DEPTH", 20, "18 or 34 or 50 or 101 or 152"),
        (RCNN, "MODEL.RESNETS.NORM", "bn", "'BN'"),
        (RCNN, "MODEL.ROI_MASK_HEAD.CONV_DIM", 0, "a whole number of 1 or more"),
        (RCNN, "MODEL.ROI_BOX_HEAD.FC_DIM", -1, "a whole number of 1 or more"),
        (RCNN, "MODEL.FPN.FUSE_TYPE", "max", "'sum' or 'avg'"),
        (RCNN, "MODEL.PIXEL_MEAN", [1.0, 2.0], "three numbers, one for each channel"),
        (RCNN, "MODEL.PIXEL_STD", [1.0, 0.0, 1.0], "three numbers above 0"),
        (DEEPLAB, "MODEL.PIXEL_MEAN", [0.0], "three numbers"),
        (DEEPLAB, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 254, "255, which stands for void"),
        (PANOPTIC, "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", -0.5, "a number from 0 to 1"),
        (RCNN, "INPUT.FORMAT", "bgr", "'RGB' or 'BGR'"),
        (RCNN, "INPUT.FORMAT", "L", "'RGB' or 'BGR'"),
        (RCNN, "INPUT.RANDOM_FLIP", "sideways", "'horizontal' or 'vertical' or 'none'"),
        (RCNN, "INPUT.MIN_SIZE_TRAIN", "()", "one short edge in pixels, or several"),
        (RCNN, "INPUT.MIN_SIZE_TRAIN_SAMPLING", "random", "'choice' or 'range'"),
        (RCNN, "INPUT.MIN_SIZE_TEST", -1, "a whole number of 0 or more"),
        (RCNN, "DATALOADER.NUM_WORKERS", -1, "a whole number of 0 or more"),
        (RCNN, "SEED", 2**40, "a whole number below"),
        (RCNN, "SOLVER.BASE_LR", -0.1, "a number above 0"),
        (RCNN, "SOLVER.BASE_LR", 0.0, "a number above 0"),
        (RCNN, "SOLVER.MAX_ITER", 0, "a whole number of 1 or more"),
        (RCNN, "SOLVER.IMS_PER_BATCH", 0, "a whole number of 1 or more"),
        (RCNN, "SOLVER.CHECKPOINT_PERIOD", 0, "1 or more; SOLVER.MAX_ITER for the last"),
        (RCNN, "SOLVER.STEPS", "(5, 3)", "ascending"),
        (RCNN, "SOLVER.WARMUP_METHOD", "exp", "'linear' or 'constant'"),
        (RCNN, "SOLVER.MOMENTUM", 1.5, "a number from 0, below 1"),
        (RCNN, "TEST.EVAL_PERIOD", -1, "a whole number of 0 or more"),
    ],
)
def test_refused(configure: Callable, config: str, key: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"{allowed}") as caught:
        check_values(configure(config, key, value))
    assert "\n" not in str(caught.value) and "use " in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("INPUT.CROP.TYPE", "foo"), r"INPUT.CROP.TYPE 'foo': use 'relative' or"),
        (("INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", [1.5, 0.5]), "at most 1"),
        (("INPUT.CROP.TYPE", "relative_range", "INPUT.CROP.SIZE", [0.9]), "as parts of the image"),
        (("INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [0, 9]), "whole numbers of pixels"),
        (("INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [0.5, 0.5]), "whole numbers of pixels"),
        (("INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", [9, 3]), "the smaller one first"),
    ],
)
def test_crops(configure: Callable, opts: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_values(configure(RCNN, *CROP, *opts))
    check_values(configure(RCNN, *opts))  # which no crop reads
    check_values(configure(RCNN, *CROP, *opts), train=False)
    size = ("INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [1000, 1000])
    check_values(configure(RCNN, *CROP, *size))  # no crop of a smaller image, as in Detectron2


def test_ranges_of_the_short_edge(configure: Callable) -> None:
    sampling = ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN")
    check_values(configure(RCNN, *sampling, "(64, 80)"))
    for wrong in ("(64,)", "(64, 70, 80)", "(80, 64)"):
        with pytest.raises(ConfigError, match=r"INPUT.MIN_SIZE_TRAIN .* two short edges"):
            check_values(configure(RCNN, *sampling, wrong))


def test_what_a_model_or_a_run_does_not_read_is_passed_over(configure: Callable) -> None:
    check_values(configure(DEEPLAB, "MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.5, 0.6]))
    check_values(configure(RCNN, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0))
    check_values(configure(RCNN, "SOLVER.MAX_ITER", 0), train=False)
    check_values(configure(DEEPLAB, "INPUT.FIXED_SIZE", [64, 128], "INPUT.MIN_SIZE_TRAIN", "()"))


def test_values_that_detectron2_takes(configure: Callable) -> None:
    check_values(
        configure(
            RCNN, "MODEL.RPN.IOU_THRESHOLDS", [0.5, 0.5], "TEST.DETECTIONS_PER_IMAGE", -1,
            "MODEL.ANCHOR_GENERATOR.SIZES", [8.0, 16.0], "INPUT.MIN_SIZE_TRAIN", "(0,)",
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "SEED", -1,
        )
    )  # fmt: skip


def _configs() -> list[str]:
    root = Path(__file__).resolve().parents[3] / "configs"
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))
    return [name for name in found if not name.startswith("search/")]


@pytest.mark.parametrize("config", _configs())
def test_every_config_of_ours_passes(
    repository: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from d2_cityscapes.engine.setup import load_config

    check_values(load_config(repository / "configs" / config, train=False))

"""What configs build: what trains, matchers, anchors; and Mask R-CNN's ablations run."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.structures import IdMapMasks

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
AS_RUN = "baselines/staged_as_run"
MASK_RCNN = sorted(
    str(path.relative_to(CONFIGS))
    for pattern in ("baselines/mask_rcnn*.yaml", "baselines/ablations/*.yaml")
    for path in CONFIGS.glob(pattern)
)

# ResNet-18 and thin layers, for tests that look at neither.
SMALL = (
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16),
)

HEADS = {"proposal_generator", "roi_heads"}
BODY = {f"bottom_up.{part}" for part in ("stem", "res2", "res3", "res4", "res5")}

DEFAULT_SIZES = [32, 64, 128, 256, 512]
DEFAULT_RATIOS = [0.5, 1.0, 2.0]
PAPER_RATIOS = [0.5, 0.833, 2.0]


def read(name: str, *opts: object) -> CfgNode:
    return load_config(CONFIGS / name, ["MODEL.DEVICE", "cpu", *map(str, opts)], train=False)


def build(name: str, *opts: object) -> nn.Module:
    return build_model(read(name, *SMALL, *opts))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stage1.yaml", {"fpn", *HEADS}),
        ("stage2.yaml", HEADS),
        ("stage3.yaml", {*BODY, "fpn", *HEADS}),
        (f"{AS_RUN}/stage1.yaml", {"fpn", *HEADS}),
        (f"{AS_RUN}/stage2.yaml", HEADS),
        (f"{AS_RUN}/stage3.yaml", {*BODY, "fpn", *HEADS} - {"bottom_up.stem", "bottom_up.res2"}),
        (
            "baselines/mask_rcnn_R_50_FPN.yaml",
            {*BODY, "fpn", *HEADS} - {"bottom_up.stem", "bottom_up.res2"},
        ),
    ],
)
def test_what_trains(name, expected):
    found: dict[str, set[bool]] = {}
    for parameter, tensor in build(name).named_parameters():
        found.setdefault(_part(parameter), set()).add(tensor.requires_grad)
    assert found == {part: {part in expected} for part in (*BODY, "fpn", *HEADS)}


def _part(parameter: str) -> str:
    names = parameter.removeprefix("backbone.").split(".")
    if names[0].startswith("fpn_"):
        return "fpn"
    return ".".join(names[:2]) if names[0] == "bottom_up" else names[0]


THRESHOLDS = {
    "stage1.yaml": ([0.3, 0.7], [0.5]),
    "stage2.yaml": ([0.220, 0.789], [0.415]),
    "stage3.yaml": ([0.220, 0.789], [0.415]),
    "full_resolution/stage1.yaml": ([0.3, 0.7], [0.5]),
    "full_resolution/stage2.yaml": ([0.220, 0.789], [0.415]),
    "full_resolution/stage3.yaml": ([0.220, 0.789], [0.415]),
    f"{AS_RUN}/stage2.yaml": ([0.3, 0.7], [0.5]),
    f"{AS_RUN}/stage3.yaml": ([0.3, 0.7], [0.5]),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_matchers_hold_the_thresholds(name):
    model = build(name)
    rpn, roi = THRESHOLDS[name]
    matcher = model.proposal_generator.anchor_matcher
    assert (matcher.thresholds[1:-1], matcher.labels) == (rpn, [0, -1, 1])
    matcher = model.roi_heads.proposal_matcher
    assert (matcher.thresholds[1:-1], matcher.labels) == (roi, [0, 1])


def _boxes(*heights: float) -> Boxes:
    """Boxes 100 wide; with the truth of height 100 their IoU is height / 100."""
    return Boxes(torch.tensor([[0.0, 0.0, 100.0, height] for height in heights]))


def _truth() -> Instances:
    found = Instances((200, 200))
    found.gt_boxes, found.gt_classes = _boxes(100), torch.tensor([3])
    return found


def _labels(model: nn.Module) -> tuple[list[int], int]:
    """RPN labels at IoU .1 .25 .5 .75 .9; foreground among RoIs at IoU .3 .45 .6."""
    anchors = _boxes(10, 25, 50, 75, 90)
    (labels,), _ = model.proposal_generator.label_and_sample_anchors([anchors], [_truth()])
    proposals = Instances((200, 200))
    proposals.proposal_boxes, proposals.objectness_logits = _boxes(30, 45, 60), torch.zeros(3)
    model.roi_heads.proposal_append_gt = False
    with EventStorage():
        (sampled,) = model.roi_heads.label_and_sample_proposals([proposals], [_truth()])
    return labels.tolist(), int((sampled.gt_classes == 3).sum())


@pytest.mark.parametrize(
    ("name", "opts", "expected"),
    [
        ("stage1.yaml", (), ([0, 0, -1, 1, 1], 1)),
        ("stage2.yaml", (), ([0, -1, -1, -1, 1], 2)),
        (f"{AS_RUN}/stage2.yaml", (), ([0, 0, -1, 1, 1], 1)),
        ("stage2.yaml", ("MODEL.RPN.IOU_THRESHOLDS", [0.05, 0.4]), ([-1, -1, 1, 1, 1], 2)),
        ("stage2.yaml", ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.2]), ([0, -1, -1, -1, 1], 3)),
    ],
)
def test_thresholds_change_the_matched_labels(name, opts, expected):
    assert _labels(build(name, *opts)) == expected


def _anchors(model: nn.Module) -> tuple[list[float], list[float]]:
    """Sizes of the levels, and height / width of the anchors, the same on each."""
    cells = list(model.proposal_generator.anchor_generator.cell_anchors)
    boxes = torch.stack([torch.as_tensor(cell) for cell in cells])  # (levels, ratios, 4)
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    sizes, ratios = (width * height).sqrt(), height / width
    torch.testing.assert_close(sizes, sizes[:, :1].expand_as(sizes))
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))
    return sizes[:, 0].tolist(), ratios[0].tolist()


@pytest.mark.parametrize(
    ("name", "sizes", "ratios"),
    [
        ("stage1.yaml", DEFAULT_SIZES, DEFAULT_RATIOS),
        ("stage2.yaml", [20, 47, 85, 141, 215], PAPER_RATIOS),
        ("stage3.yaml", [20, 47, 85, 141, 215], PAPER_RATIOS),
        ("full_resolution/stage1.yaml", DEFAULT_SIZES, DEFAULT_RATIOS),
        ("full_resolution/stage2.yaml", [31, 73, 131, 216, 330], PAPER_RATIOS),
        ("full_resolution/stage3.yaml", [31, 73, 131, 216, 330], PAPER_RATIOS),
        (f"{AS_RUN}/stage2.yaml", [31, 73, 131, 210, 330], [0.5, 1.2, 1.7]),
        (f"{AS_RUN}/stage3.yaml", [31, 73, 131, 210, 330], [0.5, 1.2, 1.7]),
        (f"{AS_RUN}/evaluation.yaml", DEFAULT_SIZES, DEFAULT_RATIOS),
    ],
)
def test_anchors(name, sizes, ratios):
    found = _anchors(build(name))
    assert found == (pytest.approx(sizes), pytest.approx(ratios))


def test_weights_as_run_keep_no_anchors():
    """F5: the wrong anchors went unnoticed, and still do where the stock generator is used."""
    names = (f"{AS_RUN}/stage3.yaml", f"{AS_RUN}/evaluation.yaml")
    trained, evaluated = (build(name) for name in names)
    assert not any("anchor_generator" in name for name in trained.state_dict())
    evaluated.load_state_dict(trained.state_dict())


def test_stage_2_as_run_takes_body_and_fpn_of_stage_1_only():
    """F6."""
    name = f"{AS_RUN}/stage2.yaml"
    patterns = read(name).MODEL.WEIGHTS_EXCLUDE
    tensors = build(name).state_dict()
    taken = {n for n in tensors if not any(fnmatchcase(n, p) for p in patterns)}
    assert {n.partition(".")[0] for n in taken} == {"backbone"}
    assert {_part(n) for n in taken} == {*BODY, "fpn"}


# --- Mask R-CNN and its ablations ---


def _image() -> dict:
    """An image of 64 x 128 with a car."""
    ids = torch.zeros(64, 128, dtype=torch.int32)
    ids[16:48, 30:90] = 26001
    instances = Instances((64, 128))
    instances.gt_boxes = Boxes(torch.tensor([[30.0, 16.0, 90.0, 48.0]]))
    instances.gt_classes = torch.tensor([2])
    instances.gt_masks = IdMapMasks(ids, torch.tensor([26001], dtype=torch.int32))
    pixels = torch.randint(0, 256, (3, 64, 128), generator=torch.Generator().manual_seed(0))
    return {"image": pixels.to(torch.uint8), "instances": instances, "height": 64, "width": 128}


@pytest.mark.parametrize("name", MASK_RCNN)
def test_mask_rcnn_trains_and_predicts(name):
    quick = [
        *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 8, "MODEL.RPN.POST_NMS_TOPK_TEST", 8),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 64, "TEST.DETECTIONS_PER_IMAGE", 4),
    ]
    torch.manual_seed(0)
    cfg = read(name, *quick, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    model = build_model(cfg)
    for block in model.modules():  # what random weights without normalisation need
        if isinstance(block, BottleneckBlock):
            block.conv3.norm.weight.zero_()
    with EventStorage():
        losses = model.train()([_image()])
    masks = {"loss_mask"} if cfg.MODEL.MASK_ON else set()
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", *masks}
    assert all(torch.isfinite(loss) for loss in losses.values())
    with torch.no_grad():
        found = model.eval()([_image()])[0]["instances"]
    assert len(found) > 0
    assert found.has("pred_masks") == cfg.MODEL.MASK_ON

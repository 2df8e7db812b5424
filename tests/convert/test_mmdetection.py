"""mmdetection's Mask R-CNN: proposals and detections of its network as its configs describe it."""

import copy

import pytest
import torch
from converted_detectors import (
    SMALL,
    assert_same,
    load_converted,
    picture_of,
    proposals_and_detections,
    randomise,
    spread_classes,
)
from mmdetection_network import MmdetectionMaskRCNN

from d2_cityscapes.convert import ConversionError, convert_file, mmdetection_to_detectron2
from d2_cityscapes.labels import CITYSCAPES

CONFIG = "mmdetection_mask_rcnn_R_50_FPN.yaml"
THINGS = [c.name for c in CITYSCAPES.things]
PICTURE = picture_of(96, 160)


@pytest.fixture(scope="module")
def source() -> MmdetectionMaskRCNN:
    torch.manual_seed(0)
    model = randomise(MmdetectionMaskRCNN(depth=18, width=32, hidden=64))
    spread_classes(model.roi_head.bbox_head.fc_cls, lambda: model(PICTURE))
    return model


@pytest.fixture(scope="module")
def expected(source):
    return source(PICTURE)


@pytest.fixture
def weights(source) -> dict:
    return dict(source.state_dict())


def test_same_proposals_and_detections(repository, tmp_path, source, expected):
    meta = {"dataset_meta": {"classes": tuple(THINGS)}, "mmengine_version": "0.7.4"}
    torch.save({"meta": meta, "state_dict": source.state_dict()}, tmp_path / "epoch_8.pth")
    report = convert_file("mmdetection", tmp_path / "epoch_8.pth", tmp_path / "out.pth")
    model = load_converted(repository, CONFIG, tmp_path / "out.pth", SMALL)
    found = proposals_and_detections(model, PICTURE)
    assert len(expected[0]["boxes"]) > 300
    assert len(expected[1]["boxes"]) > 50
    assert len(expected[1]["classes"].unique()) > 2, "detections that say nothing"
    assert_same(found[0], expected[0], 1e-3)
    assert_same(found[1], expected[1], 1e-3)
    assert any(f"configs/converted/{CONFIG}" in line for line in report)
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert content["label_table"] == {"table": "cityscapes", "things": THINGS}


def test_classes_in_another_order(repository, tmp_path, weights, expected):
    """Of an own data set in COCO's format, whose categories are by the alphabet."""
    names = sorted(THINGS)
    place = [THINGS.index(name) for name in names]  # theirs -> ours
    for layer, each in (
        ("bbox_head.fc_cls", 1),
        ("bbox_head.fc_reg", 4),
        ("mask_head.conv_logits", 1),
    ):
        for kind in ("weight", "bias"):
            name = f"roi_head.{layer}.{kind}"
            rows = [each * i + k for i in place for k in range(each)]
            rows += [8] if layer.endswith("cls") else []
            weights[name] = weights[name][rows]
    torch.save({"meta": {"CLASSES": names}, "state_dict": weights}, tmp_path / "in.pth")
    report = convert_file("mmdetection", tmp_path / "in.pth", tmp_path / "out.pth")
    assert any(
        "put into the order of Cityscapes: they were bicycle, bus" in line for line in report
    )
    model = load_converted(repository, CONFIG, tmp_path / "out.pth", SMALL)
    assert_same(proposals_and_detections(model, PICTURE)[1], expected[1], 1e-3)


def test_the_report(weights):
    found = mmdetection_to_detectron2(weights)
    assert "8 classes without names, taken for those of its CityscapesDataset" in found.report
    assert found.summary(weights).endswith("matched, 20 skipped")
    assert found.classes["things"] == THINGS
    caffe = mmdetection_to_detectron2(weights, {"cfg": "backbone=dict(style='caffe')"})
    assert any("STRIDE_IN_1X1 True INPUT.FORMAT BGR" in line for line in caffe.report)


def test_of_coco_coco_to_cityscapes_goes_on(tmp_path):
    torch.manual_seed(1)
    weights = MmdetectionMaskRCNN(depth=18, width=8, hidden=8, classes=80).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "in.pth")
    report = convert_file("mmdetection", tmp_path / "in.pth", tmp_path / "coco.pth")
    assert any("coco-to-cityscapes" in line for line in report)
    convert_file("coco-to-cityscapes", tmp_path / "coco.pth", tmp_path / "out.pth")
    found = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    theirs = weights["roi_head.bbox_head.fc_cls.weight"]
    ours = found["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(ours[2], theirs[2])  # car
    assert torch.equal(ours[8], theirs[80])  # background


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("neck.fpn_convs.3.conv.bias"), "missing: neck.fpn_convs.3.conv.bias"),
        (
            lambda w: w.update({"roi_head.bbox_head.0.fc_cls.bias": torch.zeros(9)}),
            "unknown: roi_head.bbox_head.0.fc_cls.bias",
        ),
        (
            lambda w: w.update({"roi_head.bbox_head.fc_reg.bias": torch.zeros(36)}),
            r"fc_reg.bias is \(36,\); with 8 classes and background it has 32 rows",
        ),
        (
            lambda w: w.update({"bbox_head.fc_cls.weight": torch.zeros(9, 4)}),
            "mmdetection 1, whose background is the first class.*upgrade_model_version",
        ),
        (lambda w: w.pop("backbone.layer1.0.conv1.weight"), "0 ResNets"),
    ],
)
def test_another_network_is_refused(weights, change, message):
    weights = copy.copy(weights)
    change(weights)
    with pytest.raises(ConversionError, match=message):
        mmdetection_to_detectron2(weights)

"""torchvision's Mask R-CNN, both versions: its proposals and its detections, from its weights."""

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
from torchvision.models import detection, resnet18
from torchvision.models.detection import faster_rcnn, mask_rcnn, rpn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.misc import FrozenBatchNorm2d

from d2_cityscapes.convert import ConversionError, convert_file, torchvision_rcnn_to_detectron2
from d2_cityscapes.convert.coco import COCO_ID
from d2_cityscapes.labels import VISTAS

V1 = "torchvision_mask_rcnn_R_50_FPN.yaml"
V2 = "torchvision_mask_rcnn_R_50_FPN_v2.yaml"
SIZE = 96, 160  # P5 has 3 rows, so that P6 does not divide the image
CHANNELS = 32


def network(version: int, rows: int = 9, *, masks: bool = True, frozen: bool = False):
    """A small one of torchvision's own parts, with the names of maskrcnn_resnet50_fpn."""
    norm = torch.nn.BatchNorm2d if version == 2 else None
    body = resnet18(weights=None, norm_layer=FrozenBatchNorm2d if frozen else None)
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = BackboneWithFPN(body, layers, [64, 128, 256, 512], CHANNELS, norm_layer=norm)
    parts = {
        "rpn_head": rpn.RPNHead(CHANNELS, 3, conv_depth=version),
        "box_head": faster_rcnn.TwoMLPHead(CHANNELS * 49, 64)
        if version == 1
        else faster_rcnn.FastRCNNConvFCHead((CHANNELS, 7, 7), [32] * 4, [64], norm_layer=norm),
        "box_predictor": faster_rcnn.FastRCNNPredictor(64, rows),
    }
    if masks:
        parts["mask_head"] = mask_rcnn.MaskRCNNHeads(CHANNELS, [32] * 4, 1, norm_layer=norm)
        parts["mask_predictor"] = mask_rcnn.MaskRCNNPredictor(32, 32, rows)
    build = detection.MaskRCNN if masks else detection.FasterRCNN
    return randomise(build(backbone, None, min_size=SIZE[0], max_size=SIZE[1], **parts))


def spread(model: torch.nn.Module, picture: torch.Tensor) -> None:
    predictor = model.roi_heads.box_predictor.cls_score
    spread_classes(predictor, lambda: model([picture / 255]))


def _with_rows(weights: dict, rows: int) -> dict:
    """With predictors cut to fewer classes."""
    each = {"cls_score": 1, "bbox_pred": 4, "mask_fcn_logits": 1}
    found = dict(weights)
    for name, tensor in weights.items():
        kind = name.split(".")[-2]
        if name.startswith("roi_heads.") and kind in each:
            found[name] = tensor[: each[kind] * rows]
    return found


@torch.no_grad()
def seen_by_torchvision(model: torch.nn.Module, picture: torch.Tensor) -> tuple[dict, dict]:
    images, _ = model.transform([picture / 255])
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(ImageList(images.tensors, images.image_sizes), features)
    found, _ = model.roi_heads(features, proposals, images.image_sizes)
    expected = {
        "boxes": found[0]["boxes"],
        "scores": found[0]["scores"],
        "classes": found[0]["labels"] - 1,  # background is 0 there
    }
    if "masks" in found[0]:
        expected["masks"] = found[0]["masks"][:, 0]
    return {"boxes": proposals[0]}, expected


@pytest.fixture(scope="module")
def plain() -> dict:
    """Of version 1."""
    return dict(network(1).state_dict())


@pytest.fixture(scope="module", params=[1, 2])
def version(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def source(version):
    torch.manual_seed(version)
    model = network(version)
    spread(model, picture_of(*SIZE))
    return model


@pytest.fixture(scope="module")
def converted(version, source, tmp_path_factory):
    """Path of the converted weights, and the report."""
    folder = tmp_path_factory.mktemp("rcnn")
    torch.save(source.state_dict(), folder / "in.pth")
    report = convert_file("torchvision-rcnn", folder / "in.pth", folder / "out.pth")
    return folder / "out.pth", report


def test_same_proposals_and_detections(repository, version, source, converted):
    model = load_converted(repository, {1: V1, 2: V2}[version], converted[0], SMALL)
    picture = picture_of(*SIZE)
    expected, found = (
        seen_by_torchvision(source, picture),
        proposals_and_detections(model, picture),
    )
    assert len(expected[0]["boxes"]) > 300
    assert len(expected[1]["boxes"]) == 100
    assert len(expected[1]["classes"].unique()) > 2, "detections that say nothing"
    assert_same(found[0], expected[0], 1e-3)
    assert_same(found[1], expected[1], 1e-3)


def test_with_anchors_that_are_not_rounded_they_differ(repository, version, source, converted):
    """What the anchor generator of the config is for."""
    opts = [*SMALL, "MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"]
    model = load_converted(repository, {1: V1, 2: V2}[version], converted[0], opts)
    picture = picture_of(*SIZE)
    expected = seen_by_torchvision(source, picture)[1]
    found = proposals_and_detections(model, picture)[1]
    number = min(len(found["boxes"]), len(expected["boxes"]))
    assert (found["boxes"][:number] - expected["boxes"][:number]).abs().max() > 0.1


def test_the_report_counts_every_tensor(version, source, converted):
    weights, (_, report) = source.state_dict(), converted
    text = "\n".join(report)
    assert "left behind: num_batches_tracked" in text
    assert {1: V1, 2: V2}[version] in text
    assert "MODEL.RESNETS.DEPTH 18" in text
    steps = sum(name.endswith("num_batches_tracked") for name in weights)
    matched = len(weights) - steps - 6  # 2 have moved their background, 4 have lost it
    counts = f"{matched} matched, 2 changed, 4 reshaped, {steps} skipped"
    assert f"{len(weights)} tensors in the file: {counts}" in text


def test_details_name_every_tensor(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "in.pth")
    report = convert_file(
        "torchvision-rcnn", tmp_path / "in.pth", tmp_path / "out.pth", details=True
    )
    predictor = "roi_heads.box_predictor.bbox_pred.bias"
    assert f"reshaped {predictor} (36,) -> {predictor} (32,)" in report
    assert "matched rpn.head.bbox_pred.bias -> proposal_generator.rpn_head.anchor_deltas.bias" in (
        report
    )
    assert "skipped backbone.body.bn1.num_batches_tracked" in report


def of_before_0_13(weights: dict) -> dict:
    """The names that torchvision's published file of version 1 has."""
    found = {}
    for name, tensor in weights.items():
        for k in range(4):
            name = name.replace(f"mask_head.{k}.0.", f"mask_head.mask_fcn{k + 1}.")
            name = name.replace(f"blocks.{k}.0.", f"blocks.{k}.")
        found[name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = tensor
    return found


def test_names_of_older_files(plain):
    weights = plain
    older = of_before_0_13(weights)
    assert "backbone.fpn.inner_blocks.0.weight" in older
    assert "roi_heads.mask_head.mask_fcn4.bias" in older
    found, expected = (torchvision_rcnn_to_detectron2(w).tensors for w in (older, weights))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_of_coco_the_80_classes_in_detectron2s_order(tmp_path):
    torch.manual_seed(0)
    weights = network(1, rows=91).state_dict()
    conversion = torchvision_rcnn_to_detectron2(weights)
    scores = conversion.tensors["roi_heads.box_predictor.cls_score.weight"]
    masks = conversion.tensors["roi_heads.mask_head.predictor.bias"]
    theirs = weights["roi_heads.box_predictor.cls_score.weight"]
    ids = {"person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "bus": 6, "train": 7, "truck": 8}
    assert (len(scores), len(masks)) == (81, 80)
    assert torch.equal(scores[80], theirs[0])
    assert torch.equal(scores[79], theirs[90])  # the last id, toothbrush
    for name, row in COCO_ID.items():
        assert torch.equal(scores[row], theirs[ids[name]])
        assert masks[row] == weights["roi_heads.mask_predictor.mask_fcn_logits.bias"][ids[name]]
        assert conversion.classes["things"][row] == name
    torch.save(weights, tmp_path / "in.pth")
    convert_file("torchvision-rcnn", tmp_path / "in.pth", tmp_path / "coco.pth")
    convert_file("coco-to-cityscapes", tmp_path / "coco.pth", tmp_path / "out.pth")
    rows = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    car = rows["roi_heads.box_predictor.cls_score.weight"][2]
    assert torch.equal(car, theirs[3])


def test_of_vistas_vistas_to_cityscapes_goes_on(tmp_path):
    """An own training on the 37 things of Vistas, in its order."""
    things = [c.name for c in VISTAS.things]
    weights = network(1, rows=len(things) + 1).state_dict()
    torch.save(weights, tmp_path / "in.pth")
    convert_file("torchvision-rcnn", tmp_path / "in.pth", tmp_path / "vistas.pth")
    convert_file("vistas-to-cityscapes", tmp_path / "vistas.pth", tmp_path / "out.pth")
    found = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    ours = found["roi_heads.box_predictor.cls_score.weight"]
    theirs = weights["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(ours[2], theirs[1 + things.index("Car")])
    assert torch.equal(ours[8], theirs[0])  # background


def test_published_norms_have_no_epsilon():
    """Frozen norms and 91 rows: torchvision sets their epsilon to 0 when it loads this file."""
    weights = network(1, rows=91, frozen=True).state_dict()
    weights["backbone.body.bn1.running_var"].fill_(1e-5)
    conversion = torchvision_rcnn_to_detectron2(weights)
    norm = "backbone.bottom_up.stem.conv1.norm."
    weight, variance = (conversion.tensors[norm + kind] for kind in ("weight", "running_var"))
    ours = weight / (variance + 1e-5).sqrt()
    theirs = weights["backbone.body.bn1.weight"] / weights["backbone.body.bn1.running_var"].sqrt()
    torch.testing.assert_close(ours, theirs)
    assert any("epsilon of 0" in line for line in conversion.report)
    kept = torchvision_rcnn_to_detectron2(weights, norm_epsilon=1e-5).tensors
    assert torch.equal(kept[f"{norm}weight"], weights["backbone.body.bn1.weight"])
    own = torchvision_rcnn_to_detectron2(_with_rows(weights, 9))
    assert not any("epsilon" in line for line in own.report), "an own training has torchvision's"


def test_a_variance_of_zero_without_epsilon_is_refused():
    weights = network(1, rows=91, frozen=True).state_dict()
    weights["backbone.body.bn1.running_var"][3] = 0
    with pytest.raises(ConversionError, match=r"running_var has variances of 0.*--norm-epsilon"):
        torchvision_rcnn_to_detectron2(weights)


def test_a_detector_without_masks(repository, tmp_path):
    torch.manual_seed(4)
    model = network(1, masks=False)
    spread(model, picture_of(*SIZE))
    torch.save({"model": model.state_dict()}, tmp_path / "in.pth")
    report = convert_file("torchvision-rcnn", tmp_path / "in.pth", tmp_path / "out.pth")
    assert any("MODEL.MASK_ON False" in line for line in report)
    opts = [*SMALL, "MODEL.MASK_ON", False]
    ours = load_converted(repository, V1, tmp_path / "out.pth", opts)
    picture = picture_of(*SIZE)
    assert_same(
        proposals_and_detections(ours, picture)[1], seen_by_torchvision(model, picture)[1], 1e-3
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update({"roi_heads.box_predictor.cls_score.weight": torch.tensor(1.0)}),
            r"cls_score.weight is \(\); with 0 classes",
        ),
        (lambda w: w.pop("rpn.head.cls_logits.bias"), "missing: rpn.head.cls_logits.bias"),
        (
            lambda w: w.update({"backbone.fpn.extra_blocks.p6.bias": torch.zeros(1)}),
            "unknown: backbone.fpn.extra_blocks.p6.bias",
        ),
        (
            lambda w: w.update({"roi_heads.box_predictor.bbox_pred.bias": torch.zeros(32)}),
            r"bbox_pred.bias is \(32,\); with 9 classes, background among them, it has 36 rows",
        ),
        (
            lambda w: w.update({"rpn.head.bbox_pred.bias": torch.zeros(3)}),
            r"rpn.head.bbox_pred.bias is \(3,\); with 3 anchors it has 12 rows",
        ),
    ],
)
def test_another_network_is_refused(plain, change, message):
    weights = dict(plain)
    change(weights)
    with pytest.raises(ConversionError, match=message):
        torchvision_rcnn_to_detectron2(weights)


def test_a_resnet_alone_is_sent_elsewhere():
    with pytest.raises(ConversionError, match="torchvision-resnet converts the ResNet alone"):
        torchvision_rcnn_to_detectron2(resnet18(weights=None).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "name"),
    [("maskrcnn_resnet50_fpn", V1), ("maskrcnn_resnet50_fpn_v2", V2)],
)
def test_the_whole_networks(repository, tmp_path, build, name):
    """As torchvision builds them, 8 classes; nothing is resized, and P5 has 7 rows."""
    torch.manual_seed(0)
    size = {"min_size": 224, "max_size": 320}
    source = getattr(detection, build)(weights=None, weights_backbone=None, num_classes=9, **size)
    randomise(source)
    spread(source, picture_of(224, 320))
    torch.save(source.state_dict(), tmp_path / "in.pth")
    convert_file("torchvision-rcnn", tmp_path / "in.pth", tmp_path / "out.pth")
    model = load_converted(repository, name, tmp_path / "out.pth", [])
    picture = picture_of(224, 320)
    expected = seen_by_torchvision(source, picture)
    found = proposals_and_detections(model, picture)
    assert len(expected[1]["boxes"]) == 100
    assert_same(found[0], expected[0], 1e-3, strays=2)
    assert_same(found[1], expected[1], 1e-3, strays=1)

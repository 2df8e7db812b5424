"""seamseg's network as a `SeamlessPanoptic`: the same outputs, every tensor used once."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes

from d2_cityscapes.convert import ConversionError, convert_file, seamseg_to_detectron2
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.modeling.build import build_model

SeamsegNetwork = runpy.run_path(str(Path(__file__).with_name("seamseg_network.py")))[
    "SeamsegNetwork"
]
PARAMETERS = 51_434_387
STATISTICS = ("running_mean", "running_var")
SMALL = {"blocks": (1, 1, 1, 1), "width": 2, "channels": 4, "hidden": 3}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return SeamsegNetwork().eval()


@pytest.fixture(scope="module")
def model(network, repository):
    """What the config builds, with the converted weights."""
    name = repository / "configs" / "panoptic" / "seamless_R_50_FPN.yaml"
    model = build_model(load_config(name, ["MODEL.DEVICE", "cpu"], train=False)).eval()
    model.load_state_dict(seamseg_to_detectron2(network.state_dict()).tensors, strict=True)
    return model


@pytest.fixture(scope="module")
def levels(network) -> list[torch.Tensor]:
    with torch.no_grad():
        return network.body(torch.randn(1, 3, 128, 256))


def small(**changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return SeamsegNetwork(**SMALL, **changes).state_dict()


def test_every_tensor_is_used_once(network):
    weights = network.state_dict()
    found = seamseg_to_detectron2(weights)
    assert len(found.tensors) == len(weights)
    assert sum(t.numel() for t in found.tensors.values()) == sum(
        t.numel() for t in weights.values()
    )
    parameters = [t for name, t in found.tensors.items() if not name.endswith(STATISTICS)]
    assert sum(t.numel() for t in parameters) == PARAMETERS
    # none twice: the sums of absolute values of random tensors all differ
    untouched = [n for n in weights if not n.endswith("weight") or weights[n].ndim > 1]
    sums = {round(weights[n].abs().sum().item(), 3) for n in untouched}
    assert sums <= {round(t.abs().sum().item(), 3) for t in found.tensors.values()}


def test_it_is_the_whole_model(network, model):
    """Loading was strict; this is what it had to fill."""
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS
    report = "\n".join(seamseg_to_detectron2(network.state_dict()).report)
    assert "51,434,387 parameters" in report
    assert "left behind: nothing" in report
    assert "19 classes, 8 of them things; 3 anchors" in report
    assert "predicts as it is with configs/panoptic/seamless_R_50_FPN.yaml" in report


@torch.no_grad()
def test_the_features_are_the_same(network, model):
    images = torch.randn(1, 3, 128, 256)
    found = list(model.backbone(images).values())
    expected = network.body(images)
    assert len(found) == len(expected) == 5
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0.05, "features that say nothing"
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_semantic_logits_are_the_same(network, model, levels):
    features = dict(zip(["p2", "p3", "p4", "p5"], levels, strict=False))
    found = model.sem_seg_head.layers(features)
    torch.testing.assert_close(found, network.sem_head(levels), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_proposals_are_the_same(network, model, levels):
    """Objectness and boxes of every anchor, the reference's boxes decoded by its own formulas."""
    rpn = model.proposal_generator
    scores, deltas = rpn.rpn_head(levels)
    anchors = rpn.anchor_generator(levels)
    for k, features in enumerate(levels):
        flat = deltas[k].unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)
        found = rpn.box2box_transform.apply_deltas(flat, anchors[k].tensor)
        logits, shifts = network.rpn_head(features)
        torch.testing.assert_close(scores[k], logits, rtol=1e-4, atol=1e-4)
        _, _, rows, columns = logits.shape
        stride, side = 4 << k, 32 << k
        for index in range(0, 3 * rows * columns, 7):
            place, anchor = divmod(index, 3)
            row, column = divmod(place, columns)
            ratio = (1.0, 0.5, 2.0)[anchor]  # height / width, the reference's order
            dy, dx, dh, dw = shifts[0, anchor, :, row, column].tolist()
            height, width = side * math.sqrt(ratio), side / math.sqrt(ratio)
            y, x = (row + 0.5) * stride + height * dy, (column + 0.5) * stride + width * dx
            height, width = (
                n * math.exp(min(d, math.log(1000 / 16))) for n, d in ((height, dh), (width, dw))
            )
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            assert found[index].tolist() == pytest.approx(box, rel=1e-3, abs=1e-2)


@torch.no_grad()
def test_the_detections_are_the_same(network, model):
    regions = torch.randn(5, 256, 14, 14)
    heads = model.roi_heads
    scores, deltas = heads.box_predictor(heads.box_head(regions))
    logits, shifts, masks = network.roi_head(regions)
    expected = logits.softmax(dim=1)
    found = scores.softmax(dim=1)
    torch.testing.assert_close(found[:, :8], expected[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, 8], expected[:, 0], rtol=1e-4, atol=1e-5)
    # a box 40 wide and 20 high around (x, y) = (100, 50), decoded with the weights of (y, x)
    box = torch.tensor([[80.0, 40.0, 120.0, 60.0]]).expand(5, 4)
    decoded = heads.box_predictor.box2box_transform.apply_deltas(deltas, box).view(5, 8, 4)
    dy, dx, dh, dw = shifts.unbind(2)
    y, x = 50 + 20 * dy / 10, 100 + 40 * dx / 10
    height, width = 20 * (dh / 5).exp(), 40 * (dw / 5).exp()
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=2)
    torch.testing.assert_close(decoded, corners, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(heads.mask_head.layers(regions), masks, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_regions_are_those_of_the_reference_but_for_half_a_pixel(model):
    """It samples the centre of each bin, at (p - 0.5) * scale + 0.5 in cells; the config's RoIAlign
    at p * scale + 0.5. The features are coordinates here.
    """
    columns = torch.arange(64.0).expand(1, 256, 32, 64) + 0.5  # of the centres of cells
    levels = [columns, *(torch.zeros(1, 256, 32 >> k, 64 >> k) for k in (1, 2, 3))]
    (left, right), scale = (20.0, 76.0), 0.25
    found = {}
    for shift in (0.0, -0.5):
        box = torch.tensor([[left + shift, 8.0, right + shift, 40.0]])
        pooled = model.roi_heads.box_pooler(levels, [Boxes(box)])
        found[shift] = pooled[0, 0, 0]
    centres = left + (torch.arange(14) + 0.5) * (right - left) / 14
    expected = (centres - 0.5) * scale + 0.5
    torch.testing.assert_close(found[-0.5], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0.0], expected + 0.5 * scale, rtol=0, atol=1e-4)


def test_values_by_hand():
    weights = small()
    weights["rpn_head.bn1.weight"] = torch.tensor([-2.0, 0.0, 3.0, 0.5])
    weights["roi_head.roi_cls.bias"] = torch.arange(9.0)  # background, person, rider, ...
    weights["roi_head.roi_bbx.bias"] = torch.arange(32.0)
    weights["rpn_head.conv_bbx.bias"] = torch.arange(12.0)
    found = seamseg_to_detectron2(weights).tensors
    gamma = found["proposal_generator.rpn_head.conv.norm.weight"]
    assert gamma.tolist() == pytest.approx([2.00001, 0.00001, 3.00001, 0.50001])
    classes = found["roi_heads.box_predictor.cls_score.bias"]
    assert classes.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    boxes = found["roi_heads.box_predictor.bbox_pred.bias"]
    assert boxes[:8].tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    anchors = found["proposal_generator.rpn_head.anchor_deltas.bias"]
    assert anchors.tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    assert weights["roi_head.roi_cls.bias"][0] == 0, "the input is left alone"


def test_a_snapshot_file(tmp_path):
    """As seamseg's save_snapshot writes it: a state dict for each part, and more beside."""
    weights = small()
    parts: dict = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    meta = {"epoch": 129, "last_score": 0.5, "best_score": 0.6, "global_step": 48360}
    snapshot = {"config": "[general]\n", "state_dict": parts, "training_meta": meta}
    torch.save(snapshot, tmp_path / "seamseg.tar")
    report = convert_file("seamseg", tmp_path / "seamseg.tar", tmp_path / "seamless.pth")
    assert report[-1] == f"wrote {tmp_path / 'seamless.pth'}"
    found = torch.load(tmp_path / "seamless.pth", weights_only=True)["model"]
    expected = seamseg_to_detectron2(weights).tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_released_vistas_network():
    """65 classes, two extra levels and five anchors of a cell; all but the predictors fits."""
    weights = small(classes=65, things=37, extra=2, anchors=5)
    found = seamseg_to_detectron2(weights)
    assert "backbone.top_block.p7.norm.running_var" in found.tensors
    assert found.tensors["roi_heads.box_predictor.cls_score.weight"].shape == (38, 3)
    report = "\n".join(found.report)
    assert "65 classes, 37 of them things; 5 anchors" in report
    assert "EXTRA_LEVELS 2" in report
    assert "not the 19 classes of Cityscapes" in report


def test_counters_of_steps_are_left_behind():
    weights = small() | {"rpn_head.bn1.num_batches_tracked": torch.tensor(7)}
    found = seamseg_to_detectron2(weights)
    assert found.tensors.keys() == seamseg_to_detectron2(small()).tensors.keys()
    assert "left behind: num_batches_tracked (1)" in found.report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("body.fpn.lateral.2.bn.bias"), "missing: body.fpn.lateral.2.bn.bias"),
        (lambda w: w.pop("sem_head.conv_sem.weight"), "missing: sem_head.conv_sem.weight"),
        (lambda w: w.update({"body.extra": torch.zeros(1)}), "unknown: body.extra"),
        (
            lambda w: w.update({"roi_head.roi_msk.weight": torch.zeros(7, 4, 1, 1)}),
            "roi_head.roi_msk has 7 rows; with 3 anchors and 8 thing classes it has 8",
        ),
    ],
)
def test_another_network_is_refused(change, message):
    weights = small()
    change(weights)
    with pytest.raises(ConversionError, match=message) as error:
        seamseg_to_detectron2(weights)
    assert "\n" not in str(error.value)


def test_a_file_of_something_else(tmp_path):
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ConversionError, match=r"resnet\.pth: not seamseg.s .* and \d+ more"):
        convert_file("seamseg", tmp_path / "resnet.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()

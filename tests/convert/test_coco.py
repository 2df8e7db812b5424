"""COCO heads become Cityscapes heads: the rows, the invariants of the predictions, the rider."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from d2_cityscapes.convert import ConversionError, coco_to_cityscapes, convert_file
from d2_cityscapes.convert.coco import COCO_ID
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.labels import CITYSCAPES

PREDICTOR = "roi_heads.box_predictor."
MASK = "roi_heads.mask_head.predictor."
KINDS = ("weight", "bias")
CHANGED = {
    prefix + kind
    for prefix in (f"{PREDICTOR}cls_score.", f"{PREDICTOR}bbox_pred.", MASK)
    for kind in KINDS
}
THINGS = [thing.name for thing in CITYSCAPES.things]
SHARED = [i for i, name in enumerate(THINGS) if name != "rider"]
RIDER = THINGS.index("rider")


def model_of(repository, classes: int, agnostic: bool = False) -> torch.nn.Module:
    opts = [
        *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT", 0.0),
        *("MODEL.ROI_HEADS.NUM_CLASSES", classes, "MODEL.ROI_BOX_HEAD.FC_DIM", 256),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic),
        *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic),
    ]
    return build_model(load_config(repository / "configs" / "quick" / "instance.yaml", opts))


@pytest.fixture(scope="module")
def coco(repository) -> dict[str, torch.Tensor]:
    """Weights of a small Mask R-CNN with 80 classes; its biases are not zero, as after training."""
    torch.manual_seed(0)
    weights = dict(model_of(repository, 80).state_dict())
    return {
        name: torch.randn_like(tensor) if name in CHANGED else tensor
        for name, tensor in weights.items()
    }


def test_the_map_is_detectron2s_order_of_coco():
    names = MetadataCatalog.get("coco_2017_val").thing_classes
    assert {name: names[i] for name, i in COCO_ID.items()} == {name: name for name in COCO_ID}
    assert set(COCO_ID) == set(THINGS) - {"rider"}


def test_rows_by_the_table(coco):
    """Cityscapes 0..8 from COCO 0, -, 2, 7, 5, 6, 3, 1, 80."""
    found = coco_to_cityscapes(coco).tensors
    assert {name for name in coco if found[name] is not coco[name]} == CHANGED
    table = {0: 0, 2: 2, 3: 7, 4: 5, 5: 6, 6: 3, 7: 1, 8: 80}
    for kind in KINDS:
        scores, deltas, masks = (
            (found[name + kind], coco[name + kind])
            for name in (f"{PREDICTOR}cls_score.", f"{PREDICTOR}bbox_pred.", MASK)
        )
        assert [len(new) for new, _ in (scores, deltas, masks)] == [9, 32, 8]
        for ours, theirs in table.items():
            assert torch.equal(scores[0][ours], scores[1][theirs])
            if ours < 8:  # background has no box and no mask
                assert torch.equal(masks[0][ours], masks[1][theirs])
                for row in range(4):
                    assert torch.equal(deltas[0][4 * ours + row], deltas[1][4 * theirs + row])


def test_predictions_of_the_shared_classes_are_cocos(coco):
    found = coco_to_cityscapes(coco).tensors
    theirs = [COCO_ID[THINGS[i]] for i in SHARED]
    features = torch.randn(50, 256)

    def apply(weights, layer):
        name = f"{PREDICTOR}{layer}."
        return F.linear(features, weights[f"{name}weight"], weights[f"{name}bias"])

    scores = apply(found, "cls_score")[:, [*SHARED, 8]].log_softmax(dim=1)
    expected = apply(coco, "cls_score")[:, [*theirs, 80]].log_softmax(dim=1)
    torch.testing.assert_close(scores, expected)

    deltas = apply(found, "bbox_pred").view(50, 8, 4)[:, SHARED]
    torch.testing.assert_close(deltas, apply(coco, "bbox_pred").view(50, 80, 4)[:, theirs])

    maps = torch.randn(5, coco[f"{MASK}weight"].shape[1], 4, 4)
    masks, expected = (
        F.conv2d(maps, weights[f"{MASK}weight"], weights[f"{MASK}bias"])
        for weights in (found, coco)
    )
    torch.testing.assert_close(masks[:, SHARED], expected[:, theirs])


def test_detectron2_loads_all_of_it(coco, repository, tmp_path):
    torch.save({"model": coco}, tmp_path / "coco.pth")
    report = convert_file("coco-to-cityscapes", tmp_path / "coco.pth", tmp_path / "out.pth")
    assert "rows of 7 of 8 classes taken from COCO in 6 tensors" in report[0]
    assert f"unchanged: {len(coco) - 6} tensors" in report
    model = model_of(repository, 8)
    DetectionCheckpointer(model).load(str(tmp_path / "out.pth"))
    expected = coco_to_cityscapes(coco).tensors
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


def test_model_zoo_pickles(coco, tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in coco.items()}
    old = {"proposal_generator.anchor_generator.cell_anchors.0": arrays[f"{MASK}bias"]}
    content = {"model": arrays | old, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "coco.pkl").write_bytes(pickle.dumps(content, protocol=2))
    convert_file("coco-to-cityscapes", tmp_path / "coco.pkl", tmp_path / "out.pth")
    found = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    expected = coco_to_cityscapes(coco).tensors
    assert found.keys() == expected.keys() | old.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_class_agnostic_layers_stay(repository):
    weights = model_of(repository, 80, agnostic=True).state_dict()
    conversion = coco_to_cityscapes(weights)
    changed = {name for name in weights if conversion.tensors[name] is not weights[name]}
    assert changed == {f"{PREDICTOR}cls_score.{kind}" for kind in KINDS}
    assert f"{PREDICTOR}bbox_pred.weight" in conversion.report[-1]
    assert f"{MASK}bias" in conversion.report[-1]


def test_a_detector_without_masks(coco):
    weights = {name: tensor for name, tensor in coco.items() if "mask_head" not in name}
    assert coco_to_cityscapes(weights).tensors.keys() == weights.keys()


def rider_rows(conversion) -> dict[str, torch.Tensor]:
    """The changed tensors' rows of rider: 4 of the deltas, else 1."""
    rows = {name: 4 if "bbox" in name else 1 for name in CHANGED}
    return {name: conversion.tensors[name][n * RIDER : n * (RIDER + 1)] for name, n in rows.items()}


def test_random_rider_is_a_new_class_of_detectron2(coco):
    rows = rider_rows(coco_to_cityscapes(coco, seed=3))
    for name, row in rows.items():
        if name.endswith("bias"):
            assert row.count_nonzero() == 0
        else:
            std = 0.01 if "cls_score" in name else 0.001
            assert abs(row.mean()) < 0.6 * std
            assert 0.6 * std < row.std() < 1.4 * std
    same, other = (rider_rows(coco_to_cityscapes(coco, seed=seed)) for seed in (3, 4))
    weights = [name for name in CHANGED if name.endswith("weight")]
    assert all(torch.equal(rows[name], same[name]) for name in CHANGED)
    assert not any(torch.equal(rows[name], other[name]) for name in weights)


def test_rider_by_the_statistics_of_the_whole_tensor(coco):
    name = f"{PREDICTOR}cls_score.weight"
    weights = {**coco, name: 5 + 0.5 * coco[name]}
    row = rider_rows(coco_to_cityscapes(weights, rider="blob_stats"))[name]
    assert abs(row.mean() - 5) < 0.15
    assert 0.4 < row.std() < 0.6


def test_rider_as_a_copy_of_person(coco):
    found = coco_to_cityscapes(coco, rider="person")
    for name, row in rider_rows(found).items():
        assert torch.equal(row, found.tensors[name][: len(row)])
    assert "seed" not in found.report[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop(f"{PREDICTOR}cls_score.bias"),
            "no roi_heads.box_predictor.cls_score.bias",
        ),
        (
            lambda w: w.update({f"{PREDICTOR}cls_score.weight": torch.zeros(9, 256)}),
            r"cls_score.weight is \(9, 256\), but for 80 classes it has 81 rows",
        ),
        (
            lambda w: w.update({f"{PREDICTOR}bbox_pred.bias": torch.zeros(364)}),
            r"bbox_pred.bias is \(364,\), but for 80 classes it has 320 rows",
        ),
        (lambda w: w.update({f"{MASK}bias": torch.tensor(1.0)}), r"predictor.bias is \(\), but"),
        (lambda w: w.clear(), "not a Faster or Mask R-CNN"),
    ],
)
def test_another_architecture_is_refused(coco, change, message):
    weights = dict(coco)
    change(weights)
    with pytest.raises(ConversionError, match=message):
        coco_to_cityscapes(weights)


def test_errors_name_the_file_and_leave_no_output(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ConversionError, match="not a Faster or Mask R-CNN") as error:
        convert_file("coco-to-cityscapes", tmp_path / "a.pth", tmp_path / "b.pth")
    assert str(error.value).startswith(f"{tmp_path / 'a.pth'}: ")
    with pytest.raises(ConversionError, match="rider 'horse': one of random"):
        coco_to_cityscapes({}, rider="horse")
    assert not (tmp_path / "b.pth").exists()

"""Heads for the classes of one data set become those of another: rows, and what is new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from d2_cityscapes.convert import ConversionError, convert_file, map_classes
from d2_cityscapes.convert.classes import SAME_MEANING
from d2_cityscapes.labels import CITYSCAPES, IDD, LABEL_TABLES, VISTAS, LabelTable
from d2_cityscapes.labels.record import CLASSES, class_record
from d2_cityscapes.labels.rows import class_rows
from d2_cityscapes.labels.table_file import ClassEntry, make_table

BOX, MASK = "roi_heads.box_predictor.", "roi_heads.mask_head.predictor."
SEMANTIC, QUERIES = "sem_seg_head.predictor.", "network.class_predictor."
# By hand: Cityscapes thing -> Vistas; no thing of Vistas is a train.
VISTAS_THING = {
    "person": "Person",
    "rider": "Bicyclist",
    "car": "Car",
    "truck": "Truck",
    "bus": "Bus",
    "motorcycle": "Motorcycle",
    "bicycle": "Bicycle",
}
VISTAS_CLASS = VISTAS_THING | {
    "road": "Road",
    "sidewalk": "Sidewalk",
    "building": "Building",
    "wall": "Wall",
    "fence": "Fence",
    "pole": "Pole",
    "traffic light": "Traffic Light",
    "traffic sign": "Traffic Sign (Front)",
    "vegetation": "Vegetation",
    "terrain": "Terrain",
    "sky": "Sky",
    "train": "On Rails",
}


def _weights(table: LabelTable) -> dict[str, Tensor]:
    """Every kind of predictor, and layers beside them; each row has a number of its own."""
    things, classes = len(table.things), len(table.classes)
    rows = {
        f"{BOX}cls_score": things + 1,
        f"{BOX}bbox_pred": 4 * things,
        MASK.rstrip("."): things,
        SEMANTIC.rstrip("."): classes,
        QUERIES.rstrip("."): classes + 1,
        "classifier.4": classes + 1,
    }
    weights = {}
    for name, number in rows.items():
        weights[f"{name}.weight"] = torch.randn(number, 5, 1, 1)
        weights[f"{name}.bias"] = torch.randn(number)
    weights["classifier.1.num_batches_tracked"] = torch.tensor(7)
    weights["classifier.0.weight"] = torch.randn(256, 5)
    weights["backbone.res2.weight"] = torch.randn(4, 4)
    return weights


def _names(table: LabelTable, *, things: bool) -> list[str]:
    return [c.name for c in (table.things if things else table.classes)]


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_rows_are_those_of_the_same_class(kind: str) -> None:
    old = _weights(VISTAS)
    new = map_classes(old, VISTAS, CITYSCAPES).tensors
    for prefix, each, more, mapping in (
        (f"{BOX}cls_score.", 1, 1, VISTAS_THING),
        (f"{BOX}bbox_pred.", 4, 0, VISTAS_THING),
        (MASK, 1, 0, VISTAS_THING),
        (SEMANTIC, 1, 0, VISTAS_CLASS),
        (QUERIES, 1, 1, VISTAS_CLASS),
        ("classifier.4.", 1, 1, VISTAS_CLASS),
    ):
        things = mapping is VISTAS_THING
        ours, theirs = (_names(table, things=things) for table in (CITYSCAPES, VISTAS))
        after, before = new[prefix + kind], old[prefix + kind]
        assert len(after) == each * len(ours) + more and after.dtype == before.dtype
        for name, other in mapping.items():
            for row in range(each):
                got = after[each * ours.index(name) + row]
                assert got.equal(before[each * theirs.index(other) + row]), (prefix, name)
        if more:  # background, no object, void
            assert after[-1].equal(before[-1])


def test_what_is_new_is_small_and_random_and_named() -> None:
    old = _weights(VISTAS)
    found = map_classes(old, VISTAS, CITYSCAPES)
    train = _names(CITYSCAPES, things=True).index("train")
    score, bias = (found.tensors[f"{BOX}cls_score.{kind}"][train] for kind in ("weight", "bias"))
    assert 0 < float(score.abs().max()) < 0.06 and float(bias) == 0
    things, classes, unchanged = found.report
    assert things.startswith("things: rows of 7 of 8 taken from vistas in 6 tensors: person, rider")
    assert "rider (from Bicyclist)" in things and things.endswith("at random (seed 0): train")
    assert "19 of 19" in classes and classes.endswith("at random (seed 0): none")
    assert unchanged == "unchanged: 3 tensors"
    assert found.classes == class_record(CITYSCAPES) | {"mapped": [things, classes]}
    same, other = (map_classes(old, VISTAS, CITYSCAPES, seed=seed).tensors for seed in (0, 1))
    assert same[f"{BOX}cls_score.weight"].equal(found.tensors[f"{BOX}cls_score.weight"])
    assert not other[f"{BOX}cls_score.weight"].equal(found.tensors[f"{BOX}cls_score.weight"])


def test_from_idd() -> None:
    lines = map_classes(_weights(IDD), IDD, CITYSCAPES).report
    assert "7 of 8" in lines[0] and lines[0].endswith(": train")
    assert "17 of 19" in lines[1] and lines[1].endswith(": terrain, train")


def test_to_the_same_classes_changes_nothing() -> None:
    old = _weights(CITYSCAPES)
    new = map_classes(old, CITYSCAPES, CITYSCAPES).tensors
    assert all(new[name].equal(tensor) for name, tensor in old.items())


def test_tables_of_your_own_by_name() -> None:
    source = make_table("a", [ClassEntry("Ship", thing=True), ClassEntry("quay")])
    target = make_table("b", [ClassEntry("buoy", thing=True), ClassEntry("ship", thing=True)])
    old = {f"{MASK}bias": torch.tensor([5.0]), f"{SEMANTIC}bias": torch.tensor([1.0, 2.0])}
    new = map_classes(old, source, target).tensors
    assert new[f"{MASK}bias"].tolist() == [0, 5]
    ship = [c.name for c in source.classes].index("Ship")
    assert sorted(new[f"{SEMANTIC}bias"].tolist()) == [0, ship + 1]


def test_layers_that_know_no_classes_stay() -> None:
    old = _weights(VISTAS)
    old |= {f"{BOX}bbox_pred.weight": torch.randn(4, 5), f"{BOX}bbox_pred.bias": torch.randn(4)}
    old |= {f"{MASK}weight": torch.randn(1, 5, 1, 1), f"{MASK}bias": torch.randn(1)}
    new = map_classes(old, VISTAS, CITYSCAPES).tensors
    kept = [f"{BOX}bbox_pred.weight", f"{MASK}bias", "backbone.res2.weight", "classifier.0.weight"]
    assert all(new[name] is old[name] for name in kept)


def test_declared_classes_are_there() -> None:
    for (source, target), names in SAME_MEANING.items():
        old, new = (_names(LABEL_TABLES[name], things=False) for name in (source, target))
        assert {*names} <= {*new} and {*names.values()} <= {*old}


def test_files_carry_the_record_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    content = {"model": _weights(VISTAS), CLASSES: class_record(VISTAS)}
    torch.save(content, tmp_path / "vistas.pth")
    report = convert_file("vistas-to-cityscapes", tmp_path / "vistas.pth", tmp_path / "new.pth")
    assert report[-1] == f"wrote {tmp_path / 'new.pth'}"
    found = torch.load(tmp_path / "new.pth", weights_only=True)
    assert found[CLASSES]["table"] == "cityscapes" and len(found[CLASSES]["mapped"]) == 2
    with pytest.raises(ConversionError, match=r"vistas.pth: trained for the things of vistas"):
        convert_file("idd-to-cityscapes", tmp_path / "vistas.pth", tmp_path / "new.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update({f"{BOX}cls_score.bias": torch.zeros(9)}),
            r"cls_score.bias is \(9,\), but for 37 classes it has 38 rows",
        ),
        (
            lambda w: w.update({f"{SEMANTIC}bias": torch.zeros(19)}),
            r"is \(19,\), but for 65 classes it has 65 or 66 rows",
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if "backbone" not in name],
            "no predictor with rows for the 37 things or 65 classes of vistas",
        ),
    ],
)
def test_other_models_are_refused(change: Callable, message: str) -> None:
    weights = _weights(VISTAS)
    change(weights)
    with pytest.raises(ConversionError, match=message):
        map_classes(weights, VISTAS, CITYSCAPES)


@pytest.mark.parametrize(
    "name", ["instance", "panoptic", "semantic", "deeplab", "mask2former", "eomt"]
)
def test_every_tensor_that_follows_the_classes_is_known(repository: Path, name: str) -> None:
    """Of every kind of model: those whose shape is another for another table."""
    from d2_cityscapes.engine.setup import load_config
    from d2_cityscapes.modeling.build import build_model

    if name in ("mask2former", "eomt"):
        pytest.importorskip("transformers")
    states = []
    for table in (CITYSCAPES, IDD):
        data = f"('{table.name}_shards_train',)"
        void = 1 if name == "deeplab" else 0
        opts = ["MODEL.DEVICE", "meta", "DATASETS.TRAIN", data, "DATASETS.TEST", "()"]
        opts += ["MODEL.ROI_HEADS.NUM_CLASSES", str(len(table.things))]
        opts += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(len(table.classes) + void)]
        opts += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False"]
        if void:
            opts += ["MODEL.SEM_SEG_HEAD.VOID_CLASS", str(len(table.classes))]
        cfg = load_config(repository / "configs" / "quick" / f"{name}.yaml", opts, train=False)
        with torch.device("meta"):
            states.append(build_model(cfg).state_dict())
    ours, theirs = states
    differ = {n for n, tensor in ours.items() if tensor.shape != theirs[n].shape}
    found = {
        n
        for kind, count in (("things", 8), ("classes", 19))
        for n, rows in class_rows(ours, kind)
        if rows.fits(ours[n], count)
    }
    assert found == differ and differ

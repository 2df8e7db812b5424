"""The class tables against the official ones."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label, labels, name2label, trainId2label

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import (
    CITYSCAPES,
    IDD,
    INSTANCE_DIVISOR,
    LABEL_TABLES,
    VISTAS,
    VOID_TRAIN_ID,
    LabelClass,
    LabelTable,
)
from d2_cityscapes.labels.cityscapes import CITYSCAPES_LABELS
from d2_cityscapes.labels.idd import IDD_LABELS

THINGS = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


def test_labels_are_the_official_ones() -> None:
    ours = [(name, *label) for name, label in CITYSCAPES_LABELS.items()]
    assert ours == [(x.name, x.id, x.trainId, x.hasInstances, x.color) for x in labels]


def test_classes_are_the_evaluated_ones_in_train_id_order() -> None:
    assert len(CITYSCAPES.classes) == 19
    for train_id, c in enumerate(CITYSCAPES.classes):
        official = trainId2label[train_id]
        assert (c.name, c.label_id, c.color) == (official.name, official.id, official.color)
        assert c.train_id == train_id
        assert c.is_thing == official.hasInstances


def test_things_and_stuff() -> None:
    assert [c.name for c in CITYSCAPES.things] == THINGS
    assert [c.thing_id for c in CITYSCAPES.things] == list(range(8))
    assert [c.train_id for c in CITYSCAPES.stuff] == list(range(11))
    assert all(c.thing_id is None for c in CITYSCAPES.stuff)


@pytest.mark.parametrize("label", [x for x in labels if x.id >= 0], ids=lambda x: x.name)
def test_train_id_of_every_id(label) -> None:
    expected = VOID_TRAIN_ID if label.ignoreInEval else label.trainId
    assert CITYSCAPES.train_id_of[label.id] == expected
    if label.id > 0:
        instances = label.id * INSTANCE_DIVISOR + np.arange(INSTANCE_DIVISOR)
        assert (CITYSCAPES.train_id_of[instances] == expected).all()


def test_ids_between_the_labels_are_void() -> None:
    between = np.arange(max(id2label) + 1, INSTANCE_DIVISOR)
    assert (CITYSCAPES.train_id_of[between] == VOID_TRAIN_ID).all()


def test_round_trips_between_the_id_spaces() -> None:
    train_ids = np.arange(19)
    label_ids = CITYSCAPES.label_id_of_train[train_ids]
    assert (CITYSCAPES.train_id_of[label_ids] == train_ids).all()
    things = [c.train_id for c in CITYSCAPES.things]
    assert (CITYSCAPES.thing_id_of_train[things] == np.arange(8)).all()
    assert (CITYSCAPES.label_id_of_thing == [name2label[name].id for name in THINGS]).all()
    of_things = CITYSCAPES.label_id_of_train[things]
    assert (of_things == CITYSCAPES.label_id_of_thing).all()


def test_void_and_unused_train_ids() -> None:
    others = np.arange(19, 256)
    assert (CITYSCAPES.label_id_of_train[others] == name2label["unlabeled"].id).all()
    assert (CITYSCAPES.thing_id_of_train[others] == -1).all()
    assert (CITYSCAPES.thing_id_of_train[:11] == -1).all()
    assert (CITYSCAPES.colors[others] == 0).all()
    assert CITYSCAPES.colors[13].tolist() == list(name2label["car"].color)


def test_unknown_ids() -> None:
    good = np.array([[0, 7, 26], [24000, 26999, 33999], [29000, 30, 33]])
    assert CITYSCAPES.unknown_ids(good) == []
    bad = np.array([7, 34, 999, 26000, 34000, 70000, -1], dtype=np.int64)
    assert CITYSCAPES.unknown_ids(bad) == [-1, 34, 999, 34000, 70000]
    assert CITYSCAPES.unknown_ids(good.astype(np.uint16)) == []


def test_hash_tells_tables_apart() -> None:
    assert CITYSCAPES.hash == type(CITYSCAPES)(**vars_of(CITYSCAPES)).hash
    fewer = type(CITYSCAPES)("other", CITYSCAPES.classes[:-1], CITYSCAPES.label_names)
    assert fewer.hash != CITYSCAPES.hash


def vars_of(table) -> dict:
    return {"name": "copy", "classes": table.classes, "label_names": table.label_names}


# every table --------------------------------------------------------------------------------------


@pytest.fixture(params=LABEL_TABLES.values(), ids=list(LABEL_TABLES))
def table(request) -> LabelTable:
    return request.param


def test_tables_are_consistent(table) -> None:
    assert [c.train_id for c in table.classes] == list(range(len(table.classes)))
    assert [c.thing_id for c in table.things] == list(range(len(table.things)))
    assert len({c.name for c in table.classes}) == len({c.label_id for c in table.classes})
    assert {(c.label_id, c.name) for c in table.classes} <= set(table.label_names)
    assert table.train_id_of[0] == VOID_TRAIN_ID and table.label_id_of_train[VOID_TRAIN_ID] == 0
    assert pickle.loads(pickle.dumps(table)) == table
    assert LABEL_TABLES[table.name] is table


def test_every_instance_of_a_thing_fits_16_bits(table) -> None:
    assert len(table.known_ids) <= 1 << 16
    for c in table.things:
        ids = c.label_id * INSTANCE_DIVISOR + np.arange(INSTANCE_DIVISOR)
        assert (table.train_id_of[ids] == c.train_id).all() and table.is_thing_id[ids].all()
        assert table.unknown_ids(ids.astype(np.uint16)) == []
    for c in table.stuff:
        assert table.train_id_of[c.label_id] == c.train_id and not table.is_thing_id[c.label_id]


@pytest.mark.parametrize(("label_id", "thing_id"), [(0, None), (-1, None), (65, 0), (0, 0)])
def test_label_ids_that_cannot_be_encoded_are_refused(label_id: int, thing_id: int | None) -> None:
    c = LabelClass("lane", label_id, 0, thing_id, (1, 2, 3))
    with pytest.raises(ValueError, match=f"streets: label id {label_id} of lane"):
        LabelTable("streets", (c,), ((0, "unlabeled"),))


def _table(*classes: tuple) -> LabelTable:
    """A table of (name, label id, train id, thing id)."""
    made = tuple(LabelClass(*c, (1, 2, 3)) for c in classes)
    return LabelTable("own", made, ((0, "void"), *((c.label_id, c.name) for c in made)))


def test_a_table_of_ones_own() -> None:
    table = _table(("lane", 999, 0, None), ("truck", 64, 1, 1), ("bicycle", 2, 2, 0))
    assert [c.name for c in table.things] == ["bicycle", "truck"]
    assert len(_table(*((f"c{i}", i + 1, i, None) for i in range(255))).classes) == 255


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([("a", 1, 1, 0), ("b", 2, 2, 1)], "train ids 1, 2; .*0, 1, 2, ... without holes"),
        ([("a", 1, 0, 0), ("b", 2, 2, 1)], "train ids 0, 2;"),
        ([("a", 1, 0, 0), ("b", 2, 0, 1)], "train ids 0, 0;"),
        ([("a", 1, 1, 0), ("b", 2, 0, 1)], "train ids 1, 0; classes are listed by train id"),
        ([(f"c{i}", i + 1, i, None) for i in range(256)], "up to 254"),
        ([("a", 1, 0, 0), ("b", 2, 1, 2)], "thing ids 0, 2; .* without holes"),
        ([("a", 1, 0, 1)], "thing ids 1;"),
        ([("a", 1, 0, 0), ("b", 2, 1, 0)], "thing ids 0, 0;"),
        ([("a", 1, 0, 0), ("a", 2, 1, 1)], "2 classes of the name a;"),
        ([("a", 1, 0, 0), ("b", 1, 1, 1)], "2 classes of the label id 1;"),
        ([("a", 1000, 0, None)], "label id 1000 of a;"),
    ],
)
def test_ids_with_holes_and_doubles_are_refused(classes: list[tuple], message: str) -> None:
    with pytest.raises(D2CityscapesError, match=f"own: .*{message}") as caught:
        _table(*classes)
    assert "\n" not in str(caught.value)


# Indian Driving Dataset ---------------------------------------------------------------------------

# level3Ids 0..25 by the names of the official panoptic categories; 4 to 12 have instances
IDD_NAMES = """road, parking, sidewalk, rail track, person, rider, motorcycle, bicycle,
    autorickshaw, car, truck, bus, vehicle fallback, curb, wall, fence, guard rail, billboard,
    traffic sign, traffic light, pole, obs-str-bar-fallback, building, bridge, vegetation, sky"""


def test_idd_classes_are_those_of_level_3() -> None:
    assert [c.name for c in IDD.classes] == " ".join(IDD_NAMES.split()).split(", ")
    assert [c.train_id for c in IDD.things] == list(range(4, 13))
    assert len(IDD.stuff) == 17
    assert [c.label_id for c in IDD.classes] == list(range(1, 27))
    assert IDD.classes[8].color == (255, 204, 54)


def test_idd_labels_of_polygons() -> None:
    assert len(IDD_LABELS) == 40
    assert {label.level3_id for label in IDD_LABELS.values()} == {*range(26), 255}
    joined = {"animal": "person", "train": "vehicle fallback", "tunnel": "bridge"}
    for name, other in joined.items():
        assert IDD_LABELS[name].label_id == IDD_LABELS[other].label_id
    assert IDD_LABELS["license plate"].label_id == 0
    for name, label in IDD_LABELS.items():
        if label.level3_id < 255:
            assert IDD.classes[label.level3_id].is_thing == label.has_instances, name


def test_idd_shares_names_and_colors_with_cityscapes() -> None:
    """They were taken from there; IDD's fence, wall and so on look alike."""
    ours = {c.name: (c.color, c.is_thing) for c in IDD.classes}
    shared = {c.name: (c.color, c.is_thing) for c in CITYSCAPES.classes if c.name in ours}
    assert len(shared) == 17
    assert shared == {name: ours[name] for name in shared}


# Mapillary Vistas ---------------------------------------------------------------------------------


def test_vistas_classes() -> None:
    assert len(VISTAS.classes) == 65 and len(VISTAS.things) == 37
    assert [c.label_id for c in VISTAS.classes] == list(range(1, 66))
    by_name = {c.name: c for c in VISTAS.classes}
    for name, category, is_thing, color in (
        ("Bird", 1, True, (165, 42, 42)),
        ("Crosswalk - Plain", 9, True, (140, 140, 200)),
        ("Road", 14, False, (128, 64, 128)),
        ("Person", 20, True, (220, 20, 60)),
        ("Pothole", 44, False, (70, 100, 150)),
        ("Traffic Sign (Front)", 51, True, (220, 220, 0)),
        ("On Rails", 59, False, (0, 80, 100)),
        ("Wheeled Slow", 63, True, (0, 0, 192)),
        ("Ego Vehicle", 65, False, (120, 10, 10)),
    ):
        c = by_name[name]
        assert (c.label_id, c.is_thing, c.color) == (category, is_thing, color)
    assert len({c.color for c in VISTAS.classes}) == 65

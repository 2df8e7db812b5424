"""The class table against the official one."""

from __future__ import annotations

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label, labels, name2label, trainId2label

from d2_cityscapes.labels import CITYSCAPES, INSTANCE_DIVISOR, VOID_TRAIN_ID

THINGS = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


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
    things = np.arange(8)
    assert (CITYSCAPES.thing_id_of_train[CITYSCAPES.train_id_of_thing] == things).all()
    assert (CITYSCAPES.label_id_of_thing == [name2label[name].id for name in THINGS]).all()
    of_things = CITYSCAPES.label_id_of_train[CITYSCAPES.train_id_of_thing]
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

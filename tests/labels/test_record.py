"""Class records: what weights say of the classes that they were trained for."""

from __future__ import annotations

import dataclasses

from d2_cityscapes.labels import CITYSCAPES, IDD, LabelTable
from d2_cityscapes.labels.record import class_differences, class_record


def test_the_same_table_does_not_differ():
    assert class_differences(class_record(CITYSCAPES), CITYSCAPES) == {}
    assert class_differences(None, CITYSCAPES) == {}


def test_annotation_ids_do_not_matter():
    moved = tuple(dataclasses.replace(c, label_id=c.label_id + 10) for c in CITYSCAPES.classes)
    names = tuple((c.label_id, c.name) for c in moved)
    table = LabelTable("moved", moved, ((0, "void"), *names))
    assert table.hash != CITYSCAPES.hash
    assert class_differences(class_record(CITYSCAPES), table) == {}


def test_both_are_named_from_where_they_part():
    found = class_differences(class_record(CITYSCAPES), IDD)
    assert found.keys() == {"things", "classes"}
    assert found["things"] == (
        "trained for the things of cityscapes (2 car, 3 truck, 4 bus, 5 train, 6 motorcycle, "
        "7 bicycle), and the data has those of idd (2 motorcycle, 3 bicycle, 4 autorickshaw, "
        "5 car, 6 truck, 7 bus, ...)"
    )


def test_fewer_names_differ_and_unknown_ones_do_not():
    record = class_record(CITYSCAPES)
    record["things"] = record["things"][:-1]
    del record["hash"], record["classes"]
    found = class_differences(record, CITYSCAPES)
    assert list(found) == ["things"]
    assert (
        "cityscapes (no more), and the data has those of cityscapes (7 bicycle)"
        in (found["things"])
    )


def test_records_of_any_make_are_no_traceback():
    for record in ("nonsense", [1], {"things": 7}, {"things": None}, {}):
        assert class_differences(record, CITYSCAPES) == {}
    assert class_differences({"things": [1, None], "table": 3}, CITYSCAPES).keys() == {"things"}

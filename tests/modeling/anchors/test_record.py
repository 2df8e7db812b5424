"""The anchors of weights as a tensor: there and back, and the comparison with a generator."""

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from d2_cityscapes.modeling.anchors.record import (
    anchor_difference,
    describe_record,
    find_records,
    make_record,
    record_lists,
    record_of_cells,
)

LISTS = [
    ([[31.23], [47.0]], [[0.5, 0.833, 2.0]]),  # one size for each level, ratios for all
    ([[20.0], [40.0]], [[0.5, 1.0], [0.25, 3.0]]),  # joint
    ([[32, 64, 128]], [[0.5, 1.0, 2.0]]),  # all on every level
    ([32, 64], [0.5, 1.0]),  # Detectron2 takes plain lists too
    ([[20.0], [40.0]], [[1.0, 1.0, 2.0]]),  # two ratios alike
]


def generator(sizes, ratios):
    return DefaultAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=[4, 8])


def test_a_record_by_hand():
    record = make_record([[20], [40]], [[0.5, 1.0]], 2)
    assert record.tolist() == [[0, 20, 0.5], [0, 20, 1], [1, 40, 0.5], [1, 40, 1]]
    assert describe_record(record) == "SIZES [[20], [40]] ASPECT_RATIOS [[0.5, 1]]"
    assert record_lists(record) == ([[20], [40]], [[0.5, 1], [0.5, 1]])


@pytest.mark.parametrize(("sizes", "ratios"), LISTS)
def test_lists_to_record_and_back_build_the_same_boxes(sizes, ratios):
    stock = generator(sizes, ratios)
    record = make_record(sizes, ratios, 2)
    assert len(record) == sum(stock.num_anchors)
    again = generator(*record_lists(record))
    for a, b in zip(stock.cell_anchors, again.cell_anchors, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(record_of_cells(stock.cell_anchors), record, rtol=1e-6, atol=0)
    assert not anchor_difference(record, stock.cell_anchors)
    assert not anchor_difference(record.float(), stock.cell_anchors)


@pytest.mark.parametrize(("sizes", "ratios"), LISTS[1:])
def test_others_are_told_apart(sizes, ratios):
    record = make_record(*LISTS[0], 2)
    difference = anchor_difference(record, generator(sizes, ratios).cell_anchors)
    assert difference.startswith(
        "trained with anchors of SIZES [[31.23], [47]] ASPECT_RATIOS [[0.5, 0.833, 2]], but"
    )


def test_the_smallest_step_of_an_anchor_file_is_a_difference():
    record = make_record([[511.99], [330.0]], [[2.0, 3.0]], 2)
    assert anchor_difference(record, generator([[512.0], [330.0]], [[2.0, 3.0]]).cell_anchors)
    assert anchor_difference(record, generator([[511.99], [330.0]], [[2.0, 3.0001]]).cell_anchors)


def test_records_are_found_by_name():
    record = make_record([[20]], [[1.0]], 1)
    name = "proposal_generator.anchor_generator.anchor_record"
    state = {name: record, "backbone.anchor_record_of.weight": record}
    assert list(find_records(state)) == [name]

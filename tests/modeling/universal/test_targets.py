import torch
from detectron2.structures import BitMasks, Instances
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.modeling.universal.targets import (
    NO_SEGMENT,
    Segments,
    coverage,
    find_segments,
    padded_maps,
)
from d2_cityscapes.structures import IdMapMasks

CPU = torch.device("cpu")
# sky (10), car group (13 without an instance), void; two cars and road (0)
SEM_SEG = torch.tensor([[10, 13, 13, 255], [0, 0, 13, 13]])
IDS = torch.tensor([[23, 26, 26001, 0], [7, 7, 26001, 26000]], dtype=torch.int16)


def a_picture(ids: list[int], classes: list[int]) -> dict:
    instances = Instances((2, 4))
    instances.gt_classes = torch.tensor(classes)
    instances.gt_masks = IdMapMasks(IDS, torch.tensor(ids, dtype=torch.int16))
    return {"sem_seg": SEM_SEG, "instances": instances}


def test_things_are_instances_stuff_one_segment_a_class_and_void_none():
    found = find_segments(a_picture([26001, 26000], [2, 2]), CITYSCAPES, CPU)
    assert found.classes.tolist() == [0, 10, 13, 13]
    assert found.map.tolist() == [[1, -1, 2, -1], [0, 0, 2, 3]]


def test_an_instance_that_was_dropped_is_void():
    found = find_segments(a_picture([26000], [2]), CITYSCAPES, CPU)
    assert found.map.tolist() == [[1, -1, -1, -1], [0, 0, -1, 2]]


def test_bitmaps_give_the_same_as_the_id_map():
    inputs = a_picture([26001, 26000], [2, 2])
    wanted = find_segments(inputs, CITYSCAPES, CPU)
    inputs["instances"].gt_masks = BitMasks(inputs["instances"].gt_masks.tensor)
    assert torch.equal(find_segments(inputs, CITYSCAPES, CPU).map, wanted.map)


def test_without_instances_each_class_is_one_segment_groups_too():
    found = find_segments({"sem_seg": SEM_SEG}, CITYSCAPES, CPU)
    assert found.classes.tolist() == [0, 10, 13]
    assert found.map.tolist() == [[1, 2, 2, -1], [0, 0, 2, 2]]


def test_a_picture_of_void_has_no_segments():
    found = find_segments({"sem_seg": torch.full((2, 2), 255)}, CITYSCAPES, CPU)
    assert len(found.classes) == 0
    assert (found.map == NO_SEGMENT).all()


def test_maps_are_padded_with_void_at_the_right_and_below():
    segments = [Segments(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([3]))]
    (padded,) = padded_maps(segments, (2, 3))
    assert padded.map.tolist() == [[0, 0, -1], [-1, -1, -1]]


@given(seed=st.integers(0, 2**16), height=st.integers(1, 6), width=st.integers(1, 6))
def test_coverage_is_grid_sample_of_the_bitmaps(seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    segment_map = torch.randint(-1, 3, (height, width), generator=generator)
    points = torch.rand(3, 20, 2, generator=generator)
    bitmaps = (segment_map == torch.arange(3)[:, None, None]).float()
    wanted = F.grid_sample(bitmaps[:, None], 2 * points[:, :, None] - 1, align_corners=False)
    torch.testing.assert_close(
        coverage(segment_map, torch.arange(3), points), wanted[:, 0, :, 0], atol=1e-5, rtol=0
    )

"""Coverage of boxes by ids, against torchvision's RoIAlign of the bitmaps."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from d2_cityscapes.layers import mask_coverage


def _by_roi_align(id_maps, map_index, ids, boxes, size):
    masks = (id_maps[map_index] == ids[:, None, None]).float()
    regions = torch.cat([torch.arange(len(boxes))[:, None].float(), boxes], dim=1)
    return roi_align(masks[:, None], regions, size, aligned=True)[:, 0]


def test_a_hand_worked_box():
    """Of a 4x4 box with the left half covered, cells of 2x2 pixels are full or empty."""
    ids = torch.zeros(6, 8, dtype=torch.int32)
    ids[1:5, 2:4] = 26001
    arguments = ids[None], torch.zeros(2, dtype=torch.int64)
    boxes = torch.tensor([[2.0, 1.0, 6.0, 5.0], [4.0, 1.0, 8.0, 5.0]])
    found = mask_coverage(*arguments, torch.tensor([26001, 26001]), boxes, 2)
    # a cell has 2x2 samples, each at the centre of a pixel
    assert found[0].tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert found[1].tolist() == [[0.0, 0.0], [0.0, 0.0]]


corners = st.tuples(st.floats(-30, 90, width=32), st.floats(-30, 90, width=32)).map(sorted)
boxes_of_any_size = st.lists(
    st.tuples(corners, corners).map(lambda b: (b[0][0], b[1][0], b[0][1], b[1][1])), max_size=12
)


@settings(deadline=None)
@given(boxes_of_any_size, st.integers(1, 14), st.integers(0, 1000))
def test_equals_roi_align_of_the_bitmaps(boxes, size, seed):
    """Also for empty boxes, and for boxes that leave the map."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    id_maps = torch.randint(0, 3, (2, 7, 10), generator=generator).to(torch.int32)
    id_maps = id_maps.repeat_interleave(6, dim=1).repeat_interleave(7, dim=2)
    ids = torch.randint(0, 3, (count,), generator=generator)
    map_index = torch.randint(0, 2, (count,), generator=generator)
    found = mask_coverage(id_maps, map_index, ids, boxes, size)
    expected = _by_roi_align(id_maps, map_index, ids, boxes, size)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_precision_is_kept_under_autocast():
    ids = torch.zeros(1, 300, 300, dtype=torch.int32)
    ids[:, :, 151:] = 5
    arguments = ids, torch.zeros(1, dtype=torch.int64), torch.tensor([5])
    box = torch.tensor([[0.3, 2.1, 299.7, 297.3]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mask_coverage(*arguments, box, 28)
    assert found.dtype == torch.float32
    assert found.equal(mask_coverage(*arguments, box, 28))


def test_an_inverted_box_covers_nothing():
    ids = torch.full((1, 8, 8), 7)
    arguments = ids, torch.zeros(1, dtype=torch.int64), torch.tensor([7])
    assert not mask_coverage(*arguments, torch.tensor([[5.0, 5.0, 2.0, 2.0]]), 4).any()

"""Coverage of boxes by ids, against torchvision's RoIAlign of the bitmaps."""

from __future__ import annotations

import pytest
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
    boxes = torch.tensor([[2.0, 1.0, 6.0, 5.0], [4.0, 1.0, 8.0, 5.0]])
    found = mask_coverage(ids[None], None, torch.tensor([26001, 26001]), boxes, 2)
    # a cell has 2x2 samples, each at the centre of a pixel
    assert found[0].tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert found[1].tolist() == [[0.0, 0.0], [0.0, 0.0]]


# Corners on quarters of pixels make cells that are covered by one half, and nearly so.
coordinate = st.floats(-30, 90, width=32) | st.integers(-60, 360).map(lambda n: n / 4)
corners = st.tuples(coordinate, coordinate).map(sorted)
box = st.tuples(corners, corners).map(lambda b: (b[0][0], b[1][0], b[0][1], b[1][1]))
huge = st.just((-200.0, -150.0, 300.5, 190.0))
boxes_of_any_size = st.lists(box | huge, max_size=12)


def a_scene(boxes, seed, *, cells):
    """Two maps with a few objects, of one pixel where `cells` is 1, and objects of regions."""
    generator = torch.Generator().manual_seed(seed)
    id_maps = torch.randint(0, 3, (2, 42 // cells, 70 // cells), generator=generator)
    id_maps = id_maps.to(torch.int16)
    id_maps = id_maps.repeat_interleave(cells, dim=1).repeat_interleave(cells, dim=2)
    id_maps[0, 17, 23] = 9  # a mask of one pixel
    ids = torch.tensor([0, 1, 2, 1, 9, 77], dtype=torch.int16)  # the last is nowhere
    map_index = torch.tensor([0, 0, 0, 1, 0, 1])
    objects = torch.randint(0, len(ids), (len(boxes),), generator=generator)
    return id_maps, map_index, ids, objects


def equals_roi_align(boxes, size, seed, cells, *, device):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    id_maps, map_index, ids, objects = a_scene(boxes, seed, cells=cells)
    expected = _by_roi_align(id_maps, map_index[objects], ids[objects], boxes, size)
    scene = [part.to(device) for part in (id_maps, map_index, ids, boxes)]
    found = mask_coverage(*scene, size, objects=objects.to(device)).cpu()
    assert found.shape == (len(boxes), size, size) and found.dtype == torch.float32
    assert (found >= 0.5).equal(expected >= 0.5)  # to the bit
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    ids, map_index = ids[objects].to(device), map_index[objects].to(device)
    assert mask_coverage(scene[0], map_index, ids, boxes.to(device), size).cpu().equal(found)


cases = given(
    boxes_of_any_size, st.integers(1, 14), st.integers(0, 1000), st.sampled_from([1, 2, 7])
)


@settings(deadline=None)
@cases
def test_equals_roi_align_of_the_bitmaps(boxes, size, seed, cells):
    """Also for empty boxes, and for boxes that leave the map."""
    equals_roi_align(boxes, size, seed, cells, device="cpu")


@pytest.mark.parametrize("pixels", [1 << 23, 2 * 42 * 70])
def test_equals_roi_align_on_a_gpu(pixels, fake_gpu, monkeypatch):
    """All objects at a time, or two."""
    monkeypatch.setattr("d2_cityscapes.layers.mask_targets._SLICE", pixels)

    @settings(deadline=None, max_examples=20)
    @cases
    def check(boxes, size, seed, cells):
        equals_roi_align(boxes, size, seed, cells, device="cuda")

    check()


@pytest.fixture
def crowd():
    """A scene of 1024 x 2048 with 60 objects, and 128 regions, each on most of one of them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(1, 1024, 2048, dtype=torch.int16)
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([1900.0, 900.0])
    side = 20 + torch.rand(60, 2, generator=generator) ** 3 * 400
    objects = torch.cat([corner, corner + side], dim=1).long()
    for number, (x0, y0, x1, y1) in enumerate(objects.tolist()):
        ids[0, y0 : (y0 + y1) // 2, x0:x1] = ids[0, y0:y1, x0 : (x0 + x1) // 2] = number + 1
    which = torch.arange(128) % 60
    jitter = (torch.rand(128, 4, generator=generator) - 0.5) * side[which].repeat(1, 2) * 0.4
    jitter[:60] = 0
    return ids, torch.arange(1, 61, dtype=torch.int16), objects[which] + jitter, which


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_targets_of_a_large_image(crowd, device):
    """To the bit those of the RoIAlign of that device."""
    ids, numbers, boxes, which = (part.to(device) for part in crowd)
    found = mask_coverage(ids, None, numbers, boxes, 28, objects=which) >= 0.5
    for row, (box, number) in enumerate(zip(boxes, numbers[which], strict=True)):
        region = torch.cat([box.new_zeros(1), box])[None]
        expected = roi_align((ids == number)[None].float(), region, 28, aligned=True)[0, 0] >= 0.5
        assert found[row].equal(expected)
    assert found.any()


def test_a_gpu_has_few_launches_no_wait_and_little_memory(crowd, fake_gpu):
    """For 128 regions of 60 objects; a mask for each of them is 1 GB."""
    expected = mask_coverage(crowd[0], None, *crowd[1:3], 28, objects=crowd[3]) >= 0.5
    ids, numbers, boxes, which = (part.to("cuda") for part in crowd)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with fake_gpu.watch() as seen:
        found = mask_coverage(ids, None, numbers, boxes, 28, objects=which) >= 0.5
    assert found.cpu().equal(expected)
    assert seen.total == 0, seen.table()
    assert seen.launches <= 60, seen.operations
    assert torch.cuda.max_memory_allocated() - before < 50e6


def test_deterministic_operations_are_these(fake_gpu):
    """torchvision's own function would compile another RoIAlign there."""
    boxes = [(1.0, 2.0, 50.5, 30.25), (-3.0, 0.0, 20.0, 20.0)]
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        equals_roi_align(boxes, 7, 3, 2, device="cuda")
    finally:
        torch.use_deterministic_algorithms(before)


def test_precision_is_kept_under_autocast():
    ids = torch.zeros(1, 300, 300, dtype=torch.int32)
    ids[:, :, 151:] = 5
    box = torch.tensor([[0.3, 2.1, 299.7, 297.3]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mask_coverage(ids, None, torch.tensor([5]), box, 28)
    assert found.dtype == torch.float32
    assert found.equal(mask_coverage(ids, None, torch.tensor([5]), box, 28))


def test_an_inverted_box_covers_nothing():
    ids = torch.full((1, 8, 8), 7)
    assert not mask_coverage(
        ids, None, torch.tensor([7]), torch.tensor([[5.0, 5.0, 2.0, 2.0]]), 4
    ).any()

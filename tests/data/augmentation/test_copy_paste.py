"""Copy-paste on small maps that are worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from d2_cityscapes import get_cfg
from d2_cityscapes.data.augmentation import ImageAndIds, build_augmentation
from d2_cityscapes.data.augmentation.copy_paste import CopyPaste
from d2_cityscapes.data.augmentation.image_and_ids import StoredRecord
from d2_cityscapes.data.augmentation.patches import PasteTransform, Patch
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.instances import find_instances

ROAD, SKY, TREE, CAR, PERSON = 7, 23, 21, 26, 24
SAME = T.ResizeShortestEdge((0,), 10000, "choice")


def record(ids, color: int = 0) -> StoredRecord:
    ids = np.array(ids, dtype=np.uint16)
    pixels = torch.full((3, *ids.shape), color, dtype=torch.uint8)
    return StoredRecord(pixels, ids, find_instances(ids, CITYSCAPES))


def pasted(first: StoredRecord, second: StoredRecord, resize=SAME, **options) -> ImageAndIds:
    """The first with all things of the second, without a flip unless asked for."""
    own = ImageAndIds(
        first.pixels.clone(), first.ids.copy(), CITYSCAPES,
        instances=first.instances, second=lambda: second,
    )  # fmt: skip
    options = {"prob": 1.0, "things": 1.0, "stuff": 0.0, "flip": False, **options}
    T.AugmentationList([CopyPaste(**options, resize=resize)])(own)
    return own


def street(size=(8, 16)) -> np.ndarray:
    ids = np.full(size, ROAD)
    ids[: size[0] // 2] = SKY
    return ids


def test_things_are_pasted_where_they_stand_and_hide_what_is_there():
    first, second = street(), street()
    first[4:6, 2:8] = CAR * 1000  # half of it will be hidden
    first[6:8, 10:12] = PERSON * 1000 + 3
    second[3:6, 5:9] = CAR * 1000  # the same number, but another car
    second[0:2, 0:2] = PERSON  # a group is never pasted
    second[6:8, 0:2] = 4  # nor is void
    second[6:8, 14:16] = 29000  # nor a caravan
    second[6, 4] = PERSON * 1000 + 3
    found = pasted(record(first), record(second, color=9))
    expected = first.copy()
    expected[3:6, 5:9] = CAR * 1000 + 1
    expected[6, 4] = PERSON * 1000
    np.testing.assert_array_equal(found.ids, expected)
    own = np.zeros((8, 16), bool)
    own[3:6, 5:9] = own[6, 4] = True
    np.testing.assert_array_equal(found.pixels.numpy(), np.where(own, 9, 0)[None].repeat(3, 0))


def test_stuff_comes_behind_all_things():
    first, second = street(), np.full((8, 16), TREE)
    first[4:6, 2:8], first[6:8, 0:2], first[0:2, 0:4] = CAR * 1000, PERSON, 4
    second[:4] = 4  # void
    found = pasted(record(first), record(second, color=9), stuff=1.0)
    expected = first.copy()
    expected[4:] = np.where(first[4:] == ROAD, TREE, first[4:])
    np.testing.assert_array_equal(found.ids, expected)
    np.testing.assert_array_equal(found.pixels[0].numpy() == 9, expected == TREE)


def test_things_of_the_second_stand_before_its_stuff():
    second = np.full((8, 16), TREE)
    second[2:4, 2:4] = CAR * 1000
    first = street()
    first[2:4, 2:8] = PERSON * 1000
    found = pasted(record(first), record(second), stuff=1.0)
    expected = np.full((8, 16), TREE)
    expected[2:4, 2:8], expected[2:4, 2:4] = PERSON * 1000, CAR * 1000
    np.testing.assert_array_equal(found.ids, expected)


def test_the_second_is_mirrored_by_chance():
    second = street()
    second[2:4, 1:4] = [[CAR * 1000, CAR * 1000, ROAD], [CAR * 1000] * 3]
    ways = []
    for seed in range(40):
        np.random.seed(seed)
        found = pasted(record(street()), record(second), flip=True).ids == CAR * 1000
        ways.append([np.array_equal(found, m == CAR * 1000) for m in (second, second[:, ::-1])])
    assert all(sum(way) == 1 for way in ways) and 10 < sum(way[0] for way in ways) < 30


def test_the_second_is_resized_for_itself():
    """Twice the size: a car of 2 x 3 px at (3, 6) is one of 4 x 6 at (6, 12), less the offset."""
    second = street()
    second[3:5, 6:9] = CAR * 1000
    seen = set()
    for seed in range(30):
        np.random.seed(seed)
        ids = pasted(record(street()), record(second), resize=T.Resize((16, 32))).ids
        rows, columns = np.nonzero(ids == CAR * 1000)
        if not len(rows):
            continue
        box = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        inside = [(max(6 - y, 0), max(12 - x, 0), min(10 - y, 8), min(18 - x, 16))
                  for y in range(9) for x in range(17)]  # fmt: skip
        assert tuple(map(int, box)) in inside
        seen.add(box)
    assert len(seen) > 5


def test_numbers_of_a_class_that_are_used_up_end_it():
    first = np.full((32, 32), CAR * 1000) + np.arange(1024).reshape(32, 32)
    first[31] = ROAD
    first[30, :8] = ROAD  # 984 are left
    second = np.full((32, 32), ROAD)
    second[31] = CAR * 1000 + np.arange(32)
    found = pasted(record(first), record(second))
    assert len(np.unique(found.ids)) == 1000 + 1, "road, and every number that there is"


def test_small_instances_have_more_copies_that_hide_nothing():
    first, second = street((40, 80)), street((40, 80))
    first[20:30, 30:50] = CAR * 1000
    second[22:26, 4:6] = PERSON * 1000
    np.random.seed(1)
    found = pasted(record(first), record(second, color=9), small_copies=5)
    people = find_instances(found.ids, CITYSCAPES)
    people = people.select(people.classes == 11)
    assert people.ids.tolist() == [PERSON * 1000 + k for k in range(5)]
    assert (people.areas == 8).all() and (people.boxes[:, [1, 3]] == [22, 26]).all()
    assert people.boxes[0].tolist() == [4, 22, 6, 26] and len({*people.boxes[:, 0].tolist()}) == 5
    assert (found.ids == CAR * 1000).sum() == 200
    np.testing.assert_array_equal(found.pixels[0].numpy() == 9, found.ids // 1000 == PERSON)


def test_large_instances_have_one():
    second = street((80, 160))
    second[20:60, 20:60] = CAR * 1000
    found = pasted(record(street((80, 160))), record(second), small_copies=5)
    assert {*np.unique(found.ids)} == {ROAD, SKY, CAR * 1000}


def test_what_would_be_too_small_is_not_pasted():
    second = street()
    second[2:4, 1:4], second[6, 6] = CAR * 1000, PERSON * 1000
    found = pasted(record(street()), record(second), min_area=3)
    assert {*np.unique(found.ids)} == {ROAD, SKY, CAR * 1000}
    second[2:4, 1:4] = SKY
    np.testing.assert_array_equal(
        pasted(record(street()), record(second), min_area=3).ids, street()
    )


def test_chances_are_those_given():
    second = np.full((40, 40), ROAD)
    second[::2, ::2] = CAR * 1000 + np.arange(400).reshape(20, 20)
    np.random.seed(0)
    counts = [
        len(np.unique(pasted(record(np.full((40, 40), ROAD)), record(second), things=0.3).ids)) - 1
        for _ in range(20)
    ]
    assert 0.25 < np.mean(counts) / 400 < 0.35
    times = [
        (pasted(record(street()), record(np.full((8, 16), CAR * 1000)), prob=0.3).ids > 1000).any()
        for _ in range(300)
    ]
    assert 0.2 < np.mean(times) < 0.4


def test_nothing_is_read_where_nothing_is_pasted():
    def second():
        raise AssertionError("read")

    first = record(street())
    own = ImageAndIds(first.pixels, first.ids, CITYSCAPES, instances=first.instances, second=second)
    T.AugmentationList([CopyPaste(0.0, resize=SAME)])(own)
    assert own.ids is first.ids and own.pixels is first.pixels


def test_a_paste_is_a_transform_of_detectron2():
    """On (H, W, 3) arrays it does what it does on planes, and changes no input."""
    patch = Patch(1, 2, torch.full((3, 2, 2), 5, dtype=torch.uint8), np.array([[0, 7], [26000, 0]]))
    transform = PasteTransform([patch])
    image, ids = np.zeros((4, 5, 3), np.uint8), np.full((4, 5), 23)
    after, ids_after = transform.apply_image(image), transform.apply_segmentation(ids)
    assert image.max() == 0 and (ids == 23).all()
    assert [*zip(*np.nonzero(after[..., 1]), strict=True)] == [(1, 3), (2, 2)]
    assert ids_after[1, 3] == 7 and ids_after[2, 2] == 26000 and (ids_after != 23).sum() == 2
    planes = torch.zeros(3, 4, 5, dtype=torch.uint8)
    assert transform.apply_planes(planes).permute(1, 2, 0).equal(torch.from_numpy(after))
    assert (transform.apply_coords(np.ones((2, 2))) == 1).all()


@pytest.mark.parametrize(
    ("key", "value"), [("PROB", 1.5), ("PROB", -0.1), ("THINGS", 2.0), ("STUFF", -1.0)]
)
def test_chances_are_from_0_to_1(key, value):
    cfg = get_cfg()
    cfg.INPUT.COPY_PASTE.PROB = 0.5
    cfg.INPUT.COPY_PASTE[key] = value
    with pytest.raises(D2CityscapesError, match=rf"COPY_PASTE\.{key} {value}: use a chance"):
        build_augmentation(cfg, True)


def test_copies_are_at_least_one():
    cfg = get_cfg()
    cfg.INPUT.COPY_PASTE.PROB, cfg.INPUT.COPY_PASTE.SMALL_COPIES = 0.5, 0
    with pytest.raises(D2CityscapesError, match="SMALL_COPIES 0: use a whole number of 1"):
        build_augmentation(cfg, True)

"""Picture, boxes, masks, semantics and panoptics agree, whatever augmentation does to them.

The pictures say themselves what is in them: red is the class, green which record a pixel comes
from, blue the number of the instance there. A resize by up to two mixes a pixel with those within
two of it: where these are of one segment, its colour is that of the segment.
"""

from __future__ import annotations

import numpy as np
import pytest

from d2_cityscapes import get_cfg
from d2_cityscapes.data import CityscapesShardMapper, write_shards
from d2_cityscapes.data.mapper import PASTE_FROM
from d2_cityscapes.data.register import load_shards
from d2_cityscapes.labels import CITYSCAPES

SIZE = (48, 96)
PERSON, CAR, BICYCLE, CARAVAN = 24, 26, 33, 29
# Records of even number and those pasted from have stuff of their own, so that none mixes.
STUFF = ((7, 11, 23), (8, 21, 22))
SECOND = 200  # green of the others
MIN_AREA = 12
DRAWS = 500
EVERYTHING = [
    "INPUT.SCALE_JITTER.ENABLED", True, "INPUT.SCALE_JITTER.RANGE", [0.4, 2.0],
    "INPUT.SCALE_JITTER.CROP_SIZE", [40, 64], "INPUT.SCALE_JITTER.SINGLE_CATEGORY_MAX_AREA", 0.8,
    "INPUT.COPY_PASTE.PROB", 0.8, "INPUT.COPY_PASTE.STUFF", 0.3,
]  # fmt: skip


def painted(seed: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its ids: rectangles of stuff, a group, void, a caravan, and instances."""
    rng = np.random.default_rng(seed)
    ids = np.full(SIZE, STUFF[group][0], np.int32)
    numbers = [label * 1000 + k for label in (PERSON, CAR, BICYCLE) for k in range(4)]
    segments = [*STUFF[group][1:], PERSON, 4, CARAVAN * 1000, *rng.permutation(numbers)]
    for segment in segments:
        height, width = rng.integers(3, 22, size=2)
        top, left = rng.integers(0, SIZE[0] - height), rng.integers(0, SIZE[1] - width)
        ids[top : top + height, left : left + width] = segment
    red = CITYSCAPES.train_id_of[ids]
    blue = np.where(ids >= 1000, 60 + 40 * (ids % 1000), 0)
    return np.stack([red, np.full(SIZE, SECOND * group), blue], axis=2).astype(np.uint8), ids


@pytest.fixture(scope="module")
def dicts(array_source, tmp_path_factory):
    """Records of the two kinds, in turn."""
    root = tmp_path_factory.mktemp("painted")
    sources = [
        array_source(f"a_{i:06d}_000000_leftImg8bit.png", *painted(i, i % 2)) for i in range(12)
    ]
    write_shards(sources, root, split="train", partitions=1)
    return load_shards(root, split="train")


def drawn(dicts, opts, count: int):
    """Mapped samples, each with the ids of its record."""
    cfg = get_cfg()
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = "RGB", (40, 48), 200
    cfg.INPUT.MIN_INSTANCE_AREA = MIN_AREA
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = "SeamlessPanoptic", True
    cfg.merge_from_list(opts)
    mapper = CityscapesShardMapper(cfg, True, panoptic=True)
    for draw in range(count):
        np.random.seed(draw)
        first, second = np.random.randint(6, size=2) * 2 + [0, 1]
        yield mapper({**dicts[first], PASTE_FROM: dicts[second]})


def check_targets(sample) -> int:
    """All targets are of one map; how many instances there are."""
    panoptic, segments = (x.numpy() if hasattr(x, "numpy") else x for x in sample["panoptic_seg"])
    classes = sample["sem_seg"].numpy()
    assert classes.shape == panoptic.shape == tuple(sample["image"].shape[1:])
    expected = np.full(panoptic.shape, 255)
    for segment in segments:
        expected[panoptic == segment["id"]] = segment["category_id"]
    np.testing.assert_array_equal(classes, expected)

    found = sample["instances"]
    singles = [s for s in segments if s["isthing"] and not s["iscrowd"]]
    masks = found.gt_masks.tensor.numpy()
    assert len(found) == len(masks) == len(singles)
    for segment, box, mask, thing in zip(
        singles, found.gt_boxes.tensor.tolist(), masks, found.gt_classes.tolist(), strict=True
    ):
        np.testing.assert_array_equal(mask, panoptic == segment["id"])
        assert CITYSCAPES.thing_id_of_train[segment["category_id"]] == thing
        assert mask.sum() == segment["area"] >= MIN_AREA
        rows, columns = np.nonzero(mask)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return len(found)


def unmixed(panoptic: np.ndarray, reach: int) -> np.ndarray:
    """(H, W) bool: where all within some pixels is of one segment, and nothing was cut off."""
    padded = np.pad(panoptic, reach, constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2)
    return (windows == panoptic[..., None, None]).all(axis=(2, 3))


def check_picture(sample, reach: int = 2) -> set[int]:
    """The picture shows what the targets say; of which records."""
    red, green, blue = sample["image"].numpy().astype(int)
    panoptic, segments = sample["panoptic_seg"][0].numpy(), sample["panoptic_seg"][1]
    sure = unmixed(panoptic, reach) & (panoptic > 0)
    np.testing.assert_array_equal(red[sure], sample["sem_seg"].numpy()[sure])
    assert {*np.unique(green[sure])} <= {0, SECOND}
    owners = {}
    for segment in segments:
        own = sure & (panoptic == segment["id"])
        if not own.any():
            continue
        if segment["isthing"] and not segment["iscrowd"]:
            # one instance of one record, of the first one only once; numbers tell them apart
            (pair,) = {*zip(green[own].tolist(), blue[own].tolist(), strict=True)}
            key = (segment["category_id"], *pair)
            assert pair[1] >= 60 and (pair[0] == SECOND or key not in owners)
            owners[key] = segment["id"]
        elif segment["isthing"]:
            # a group of the first record, or instances that have become too small
            assert (blue[own & (green == SECOND)] > 0).all()
    return {*np.unique(green[sure]).tolist()}


def test_everything_agrees_on_500_draws(dicts):
    instances, seen = 0, set()
    for sample in drawn(dicts, EVERYTHING, DRAWS):
        assert sample["image"].shape == (3, 40, 64) and sample["image"].is_contiguous()
        instances += check_targets(sample)
        seen |= check_picture(sample)
        assert PASTE_FROM not in sample
    assert instances > 5 * DRAWS and seen == {0, SECOND}


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["INPUT.CROP.ENABLED", True],
        ["INPUT.FIXED_SIZE", [44, 72], "INPUT.COPY_PASTE.PROB", 1.0],
        ["INPUT.COPY_PASTE.PROB", 1.0, "INPUT.COPY_PASTE.STUFF", 1.0],
        ["INPUT.COPY_PASTE.PROB", 1.0, "INPUT.COPY_PASTE.SMALL_COPIES", 4],
        ["INPUT.SCALE_JITTER.ENABLED", True, "INPUT.SCALE_JITTER.RANGE", [0.1, 2.0],
         "INPUT.SCALE_JITTER.CROP_SIZE", [48, 96], "INPUT.COPY_PASTE.PROB", 1.0],
        ["INPUT.RESIZE_BACKEND", "pil", *EVERYTHING],
    ],
)  # fmt: skip
def test_each_agrees(dicts, opts):
    for sample in drawn(dicts, opts, 15):
        check_targets(sample)
        check_picture(sample)


def test_without_a_resize_every_pixel_agrees(dicts):
    """At the size of the records, with crops, flips and pastes."""
    opts = [*EVERYTHING, "INPUT.SCALE_JITTER.RANGE", [1.0, 1.0], "INPUT.MIN_SIZE_TRAIN", (0,)]
    for sample in drawn(dicts, opts, 50):
        check_targets(sample)
        check_picture(sample, reach=0)


def test_colours_change_the_picture_alone(dicts):
    plain, coloured = (
        [*drawn(dicts, [*EVERYTHING, "INPUT.COLOR_JITTER.ENABLED", on], 30)] for on in (False, True)
    )
    changed = 0
    for a, b in zip(plain, coloured, strict=True):
        check_targets(b)
        np.testing.assert_array_equal(a["image"].shape, b["image"].shape)
        changed += not a["image"].equal(b["image"])
    assert changed > 20


def test_both_records_are_in_the_order_of_the_image(dicts):
    """BGR is RGB in the other order, of what is pasted too."""
    for rgb, bgr in zip(
        drawn(dicts, EVERYTHING, 20), drawn(dicts, [*EVERYTHING, "INPUT.FORMAT", "BGR"], 20),
        strict=True,
    ):  # fmt: skip
        assert bgr["image"].flip(0).equal(rgb["image"])


def test_without_a_switch_nothing_of_it_acts(dicts):
    """The other keys of a switch that is off, and a second record, change nothing."""
    off = [
        "INPUT.SCALE_JITTER.RANGE", [0.1, 0.2], "INPUT.SCALE_JITTER.CROP_SIZE", [8, 8],
        "INPUT.COPY_PASTE.PROB", 0.0, "INPUT.COPY_PASTE.THINGS", 1.0,
        "INPUT.COPY_PASTE.SMALL_COPIES", 9, "INPUT.SMALL_INSTANCE_AREA", 1,
    ]  # fmt: skip
    for a, b in zip(drawn(dicts, [], 20), drawn(dicts, off, 20), strict=True):
        assert a.keys() == b.keys() and a["image"].equal(b["image"])
        assert a["sem_seg"].equal(b["sem_seg"])
        assert a["panoptic_seg"][0].equal(b["panoptic_seg"][0])
        assert not b["instances"].has("gt_weights") and "sem_seg_weights" not in b

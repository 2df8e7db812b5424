"""Scale jitter: a crop, resized, and padded where it is too small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from d2_cityscapes import get_cfg
from d2_cityscapes.data.augmentation import ImageAndIds, build_augmentation, resize_image
from d2_cityscapes.data.augmentation.scale_jitter import PadTo, ScaleJitter
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES, IDD, VISTAS

SAME = T.ResizeShortestEdge((0,), 10000, "choice")
HALF = T.ResizeShortestEdge((32,), 10000, "choice")


def noise(size=(64, 128), seed=0) -> ImageAndIds:
    """A picture whose pixels, and ids, say where they are."""
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
    ids = np.arange(size[0] * size[1]).reshape(size) % 30000
    return ImageAndIds(pixels, ids.astype(np.uint16), CITYSCAPES)


@pytest.mark.parametrize("resize", [SAME, HALF, T.Resize((40, 128))])
@pytest.mark.parametrize("scale_range", [(0.5, 2.0), (0.1, 2.0), (1.0, 1.0)])
def test_it_is_a_resized_crop(resize, scale_range):
    """Of the picture as it is stored, which covers what the factor says, to within a pixel."""
    jitter = ScaleJitter(resize, scale_range, (24, 48))
    base = resize.get_transform(np.zeros((64, 128, 3)))
    factors = []
    for seed in range(40):
        np.random.seed(seed)
        own, whole = noise(), noise()
        crop, scale = jitter(own).transforms
        y0, x0, rows, columns = crop.y0, crop.x0, crop.h, crop.w
        assert 0 <= y0 <= y0 + rows <= 64 and 0 <= x0 <= x0 + columns <= 128
        size = scale.new_h, scale.new_w
        assert own.pixels.shape == (3, *size) and own.ids.shape == size
        assert size[0] <= 24 and size[1] <= 48
        piece = whole.pixels[:, y0 : y0 + rows, x0 : x0 + columns]
        assert own.pixels.equal(resize_image(piece, size))
        centre = (2 * np.arange(size[0]) + 1) * rows // (2 * size[0])
        np.testing.assert_array_equal(own.ids[:, 0] // 128, (whole.ids[:, 0] // 128)[y0:][centre])
        np.random.seed(seed)
        height, width = jitter.scaled_size(whole.image)
        assert (
            abs(rows - size[0] * 64 / height) <= 0.5 and abs(columns - size[1] * 128 / width) <= 0.5
        )
        assert size == (min(24, height), min(48, width))
        factors.append(height / (64 if isinstance(base, T.NoOpTransform) else base.new_h))
    assert min(factors) >= scale_range[0] - 0.02 and max(factors) <= scale_range[1] + 0.02
    if scale_range[0] < scale_range[1]:
        middle = sum(scale_range) / 2
        assert 0.3 < np.mean(np.array(factors) < middle) < 0.7, "evenly"


def test_crops_are_everywhere():
    jitter = ScaleJitter(SAME, (1.0, 1.0), (32, 32))
    corners = {(t.y0, t.x0) for t in (jitter(noise()).transforms[0] for _ in range(400))}
    rows, columns = zip(*corners, strict=True)
    assert min(rows) == min(columns) == 0 and max(rows) == 32 and max(columns) >= 94


def test_a_crop_of_one_class_is_drawn_anew():
    """The left tenth is sky, else road: most crops have road alone."""
    ids = np.full((64, 640), 7, np.uint16)
    ids[:, :64] = 23
    pixels = torch.zeros(3, 64, 640, dtype=torch.uint8)
    shares = {}
    for limit in (1.0, 0.9):
        np.random.seed(0)
        jitter = ScaleJitter(SAME, (1.0, 1.0), (32, 64), limit)
        found = []
        for _ in range(60):
            own = ImageAndIds(pixels, ids, CITYSCAPES)
            jitter(own)
            found.append(np.mean(own.ids == 23))
        shares[limit] = np.mean([0.1 < share < 0.9 for share in found])
    assert shares[1.0] < 0.25 and shares[0.9] > 2.5 * shares[1.0]


def test_void_is_no_class_of_a_crop():
    """Nine tenths void and the rest of two classes is mixed; of one class and void it is not."""
    jitter = ScaleJitter(SAME, (1.0, 1.0), (10, 10), 0.75)
    ids = np.zeros((10, 10), np.uint16)
    ids[0] = [7] * 5 + [23] * 5
    assert jitter._is_mixed(ids, CITYSCAPES)
    ids[0] = 7
    assert not jitter._is_mixed(ids, CITYSCAPES)
    assert not jitter._is_mixed(np.zeros((10, 10), np.uint16), CITYSCAPES)


@pytest.mark.parametrize("table", [CITYSCAPES, IDD, VISTAS])
def test_what_is_smaller_is_padded_with_void(table):
    pixels = torch.full((3, 10, 20), 3, dtype=torch.uint8)
    own = ImageAndIds(pixels, np.full((10, 20), table.classes[2].label_id, np.uint16), table)
    PadTo((16, 24))(own)
    assert own.pixels.shape == (3, 16, 24) and own.ids.shape == (16, 24)
    assert (own.pixels[:, :10, :20] == 3).all() and (own.pixels[:, 10:] == 128).all()
    assert (own.sem_seg[:10, :20] == 2).all()
    assert (own.sem_seg[10:] == 255).all() and (own.sem_seg[:, 20:] == 255).all()
    before = own.pixels
    PadTo((16, 24))(own)
    PadTo((8, 8))(own)
    assert own.pixels is before


def test_the_config_builds_it_in_place_of_resize_and_crop():
    cfg = get_cfg()
    cfg.INPUT.SCALE_JITTER.ENABLED = cfg.INPUT.COLOR_JITTER.ENABLED = True
    cfg.INPUT.COPY_PASTE.PROB = 0.5
    names = [type(a).__name__ for a in build_augmentation(cfg, True)]
    assert names == ["ScaleJitter", "CopyPaste", "ColorJitter", "RandomFlip", "PadTo"]
    assert [type(a).__name__ for a in build_augmentation(cfg, False)] == ["ResizeShortestEdge"]
    np.random.seed(0)
    own = noise((400, 800))
    jitter, *_, pad = build_augmentation(cfg, True)
    T.AugmentationList([jitter, pad])(own)
    assert own.pixels.shape == (3, 512, 1024)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SCALE_JITTER.RANGE", [0.0, 2.0], r"RANGE \[0.0, 2.0\]: use two factors above 0"),
        ("SCALE_JITTER.RANGE", [2.0, 0.5], "the smaller one first"),
        ("SCALE_JITTER.RANGE", [2.0], "use two factors"),
        ("SCALE_JITTER.CROP_SIZE", [512], r"CROP_SIZE \[512\]: use \[height, width\]"),
        ("SCALE_JITTER.CROP_SIZE", [512, 0], "CROP_SIZE"),
        ("SCALE_JITTER.SINGLE_CATEGORY_MAX_AREA", 0.0, "SINGLE_CATEGORY_MAX_AREA 0.0: use a part"),
        ("CROP.ENABLED", True, "scales and crops by itself: set INPUT.CROP.ENABLED False"),
        ("FIXED_SIZE", [64, 64], r"set INPUT.FIXED_SIZE \[\], or leave it off"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_line(key, value, message):
    cfg = get_cfg()
    cfg.INPUT.SCALE_JITTER.ENABLED = True
    cfg.merge_from_list([f"INPUT.{key}", value])
    with pytest.raises(D2CityscapesError, match=message) as error:
        build_augmentation(cfg, True)
    assert "\n" not in str(error.value)
    build_augmentation(cfg, False)

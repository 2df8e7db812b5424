"""Image and ids under Detectron2's augmentations: the same as Detectron2's own, only sooner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from d2_cityscapes import get_cfg
from d2_cityscapes.data import ShardReader
from d2_cityscapes.data.augmentation import ImageAndIds, build_augmentation, resize_image
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.synthetic.street.scene import render_scene


@pytest.fixture(scope="module")
def record(datasets_root):
    return ShardReader(datasets_root / "cityscapes_shards", split="train")[0]


def _pair(record, **options):
    ids = record.instance_ids.numpy().astype(np.uint16)
    return ImageAndIds(record.image.clone(), ids, CITYSCAPES, **options)


@pytest.mark.parametrize("size", [(800, 1600), (896, 1792), (960, 1920), (512, 1024), (1300, 2600)])
def test_torch_resizes_within_two_grey_levels_of_pillow(size):
    scene = render_scene(1024, 2048, rng=np.random.default_rng(4))
    pixels = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()
    fast, slow = (resize_image(pixels, size, backend=b).int() for b in ("torch", "pil"))
    assert fast.shape == slow.shape == (3, *size)
    difference = (fast - slow).abs()
    assert difference.max() <= 2
    assert (difference > 0).float().mean() <= 0.013


@pytest.mark.parametrize("size", [(53, 107), (150, 300)])
def test_plain_resizing_is_torchvisions_to_half_a_grey_level(size):
    """Of what torchvision's detectors see; with antialiasing it differs by far more."""
    pixels = torch.randint(0, 256, (3, 100, 200), dtype=torch.uint8)
    transform = GeneralizedRCNNTransform(*size, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    theirs = transform([pixels / 255])[0]
    height, width = theirs.image_sizes[0]
    expected = 255 * theirs.tensors[0, :, :height, :width]
    plain, smooth = (
        resize_image(pixels, (height, width), backend=b).float() for b in ("plain", "torch")
    )
    assert (plain - expected).abs().max() <= 0.501
    if size[0] < 100:
        assert (smooth - expected).abs().max() > 10


def test_pillow_resize_is_detectron2s(record):
    ours = _pair(record, resize_backend="pil")
    T.AugmentationList([T.ResizeShortestEdge(48, 200)])(ours)
    theirs = T.AugInput(record.image.permute(1, 2, 0).numpy())
    T.AugmentationList([T.ResizeShortestEdge(48, 200)])(theirs)
    np.testing.assert_array_equal(ours.image, theirs.image)


def test_the_same_size_is_left_alone(record):
    assert resize_image(record.image, (64, 128)) is record.image


@pytest.mark.parametrize("height", [21, 33, 64, 97, 200])
def test_ids_are_sampled_as_pillow_samples(record, height):
    pair = _pair(record)
    pair.transform(T.ResizeTransform(64, 128, height, 2 * height))
    expected = Image.fromarray(record.instance_ids.numpy()).resize(
        (2 * height, height), Image.Resampling.NEAREST
    )
    # a centre on the border of two pixels belongs to either: Pillow adds up rounded steps
    clear = (2 * np.arange(2 * height) + 1) * 128 % (4 * height) != 0
    np.testing.assert_array_equal(
        pair.ids[clear[:height]][:, clear], np.asarray(expected)[clear[:height]][:, clear]
    )
    assert clear.mean() > 0.9


@pytest.mark.parametrize(
    "augmentation",
    [
        T.RandomFlip(prob=1.0),
        T.RandomFlip(prob=1.0, horizontal=False, vertical=True),
        T.RandomFlip(prob=0.0),
        T.RandomCrop("absolute", (40, 50)),
        T.RandomBrightness(0.5, 1.5),
        T.RandomContrast(0.5, 1.5),
        T.RandomApply(T.RandomSaturation(0.5, 1.5), prob=0.5),
        T.PadTransform(3, 2, 5, 1, 128, 64),
        T.RandomExtent(scale_range=(0.8, 1.2), shift_range=(0.1, 0.1)),
        T.TransformList([T.HFlipTransform(128), T.CropTransform(3, 4, 60, 50)]),
    ],
    ids=lambda a: type(a).__name__,
)
def test_other_transforms_give_what_detectron2_gives(record, augmentation):
    pair = _pair(record)
    theirs = T.AugInput(
        record.image.permute(1, 2, 0).numpy(), sem_seg=record.instance_ids.numpy().astype(np.uint16)
    )
    for inputs in (pair, theirs):
        np.random.seed(3)
        T.AugmentationList([augmentation])(inputs)
    np.testing.assert_array_equal(pair.image, theirs.image)
    np.testing.assert_array_equal(pair.ids, theirs.sem_seg)
    assert pair.pixels.dtype == torch.uint8


def test_augmentations_that_look_at_classes(record):
    pair = _pair(record)
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (32, 32), 0.9, ignored_category=255)
    T.AugmentationList([crop])(pair)
    assert pair.pixels.shape == (3, 32, 32) and pair.sem_seg.shape == (32, 32)
    blind = ImageAndIds(record.image, None, CITYSCAPES)
    with pytest.raises(AttributeError, match="sem_seg"):
        T.AugmentationList([crop])(blind)


@pytest.mark.parametrize("is_train", [True, False])
def test_without_our_keys_the_augmentations_are_detectron2s(is_train):
    ours = build_augmentation(get_cfg(), is_train)
    assert str(ours) == str(detection_utils.build_augmentation(get_cfg(), is_train))


def test_a_fixed_size_takes_the_place_of_the_short_edge(record):
    cfg = get_cfg()
    cfg.INPUT.FIXED_SIZE = [48, 40]
    cfg.INPUT.CROP.ENABLED = True
    kinds = [type(a) for a in build_augmentation(cfg, True)]
    assert kinds == [T.Resize, T.RandomCrop, T.RandomFlip]
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.RANDOM_FLIP = False, "none"
    images = []
    for is_train, backend in ((True, "torch"), (False, "torch"), (False, "pil")):
        pair = _pair(record, resize_backend=backend)
        T.AugmentationList(build_augmentation(cfg, is_train))(pair)
        assert pair.pixels.shape == (3, 48, 40) and pair.ids.shape == (48, 40)
        images.append(pair.pixels.int())
    assert images[0].equal(images[1]) and (images[1] - images[2]).abs().max() <= 2


@pytest.mark.parametrize("size", [[768], [768, 0], [768, 1024, 3], [0.5, 0.5]])
def test_a_fixed_size_is_a_height_and_a_width(size):
    cfg = get_cfg()
    cfg.INPUT.FIXED_SIZE = size
    with pytest.raises(D2CityscapesError, match=r"FIXED_SIZE is .*: give \[height, width\]"):
        build_augmentation(cfg, False)

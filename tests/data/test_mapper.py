"""The mapper: image and ids move together, and the targets are those of the moved ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T

from d2_cityscapes import get_cfg
from d2_cityscapes.data import CityscapesShardMapper, ShardReader, write_shards
from d2_cityscapes.data.register import load_shards
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_panoptic
from d2_cityscapes.evaluation.panoptic.quality import PanopticQuality
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.structures import IdMapMasks


@pytest.fixture
def dicts(datasets):
    return DatasetCatalog.get("cityscapes_shards_train")


def _mapper(augmentations=(), **options):
    return CityscapesShardMapper(True, augmentations=augmentations, sem_seg=True, **options)


def test_without_augmentation_the_targets_are_the_record(dicts):
    seen = 0
    for d in dicts:
        record = ShardReader(d["shard"])[d["index"]]
        out = _mapper(image_format="RGB")(d)
        assert out["image"].equal(record.image)
        train_ids = CITYSCAPES.train_id_of[record.instance_ids.numpy()]
        assert out["sem_seg"].dtype == torch.int64
        np.testing.assert_array_equal(out["sem_seg"].numpy(), train_ids)
        single = ~record.crowd
        target = out["instances"]
        assert len(target) == single.sum()
        assert target.gt_boxes.tensor.tolist() == record.boxes[single].tolist()
        assert (target.gt_classes + 11).tolist() == record.classes[single].tolist()
        for mask, segment in zip(target.gt_masks.tensor, record.ids[single], strict=True):
            assert mask.equal(record.instance_ids == int(segment))
        assert "annotations" not in out and out["file_name"] == record.file_name
        seen += len(target)
    assert seen > 0


def test_masks_stay_in_the_id_map(dicts):
    target = max((_mapper()(d)["instances"] for d in dicts), key=len)
    assert len(target) > 2 and isinstance(target.gt_masks, IdMapMasks)
    assert target.gt_masks.id_maps.numel() == 64 * 128
    assert target.gt_boxes.tensor.equal(target.gt_masks.get_bounding_boxes().tensor)


def test_ids_above_the_signed_range_are_instances(array_source, tmp_path):
    """Bicycles are 33000 and more, which needs the 16th bit."""
    ids = np.full((8, 12), 7)
    ids[1:3, 2:5], ids[4:6, 6:9] = 33000, 33001
    picture = np.zeros((8, 12, 3), np.uint8)
    write_shards([array_source("a_leftImg8bit.png", picture, ids)], tmp_path, split="train")
    (d,) = load_shards(tmp_path, split="train")
    target = _mapper()(d)["instances"]
    assert target.gt_classes.tolist() == [7, 7]
    assert [m.nonzero()[0].tolist() for m in target.gt_masks] == [[1, 2], [4, 6]]


def test_the_panoptic_target_holds_the_whole_truth(dicts):
    for d in dicts:
        panoptic, segments_info = _mapper(panoptic=True)(d)["panoptic_seg"]
        assert panoptic.dtype == torch.int32
        areas = torch.bincount(panoptic.flatten())
        assert all(areas[s["id"]] == s["area"] for s in segments_info)
        truth = ShardReader(d["shard"])[d["index"]]
        crowd = sorted(truth.classes[truth.crowd].tolist())
        assert sorted(s["category_id"] for s in segments_info if s["iscrowd"]) == crowd
        quality = PanopticQuality()
        quality.update(ids_of_panoptic(panoptic.numpy(), segments_info), truth.instance_ids)
        assert quality.compute()["PQ"] == 100


def test_bgr_is_the_other_order(dicts):
    rgb, bgr = _mapper(image_format="RGB")(dicts[0]), _mapper(image_format="BGR")(dicts[0])
    assert rgb["image"].flip(0).equal(bgr["image"])


def test_flip_moves_image_and_targets_together(dicts):
    plain, flipped = _mapper()(dicts[1]), _mapper([T.RandomFlip(prob=1.0)])(dicts[1])
    assert flipped["image"].equal(plain["image"].flip(2))
    assert flipped["sem_seg"].equal(plain["sem_seg"].flip(1))
    assert flipped["instances"].gt_masks.tensor.equal(plain["instances"].gt_masks.tensor.flip(2))
    width = plain["image"].shape[2]
    x0, y0, x1, y1 = plain["instances"].gt_boxes.tensor.unbind(1)
    expected = torch.stack([width - x1, y0, width - x0, y1], dim=1)
    assert flipped["instances"].gt_boxes.tensor.equal(expected)


def test_resize_samples_ids_where_the_image_is_sampled(dicts):
    """At an odd reduction the nearest pixel is the middle one: 3 -> 1 takes pixel 1 of 0, 1, 2."""
    d = dicts[0]
    ids = ShardReader(d["shard"])[d["index"]].instance_ids
    out = _mapper([T.CropTransform(0, 0, 126, 63), T.Resize((21, 42))])(d)
    expected = CITYSCAPES.train_id_of[ids.numpy()[1:63:3, 1:126:3]]
    np.testing.assert_array_equal(out["sem_seg"].numpy(), expected)


def test_boxes_are_tight_after_a_crop(dicts):
    for d in dicts:
        target = _mapper([T.CropTransform(20, 10, 90, 45)])(d)["instances"]
        assert target.image_size == (45, 90)
        tight = target.gt_masks.get_bounding_boxes().tensor
        assert target.gt_boxes.tensor.equal(tight)


def test_small_instances_are_dropped_by_their_area(dicts):
    sizes = [int(m.sum()) for d in dicts for m in _mapper()(d)["instances"].gt_masks.tensor]
    limit = sorted(sizes)[len(sizes) // 2]
    kept = [
        int(m.sum())
        for d in dicts
        for m in _mapper(min_instance_area=limit)(d)["instances"].gt_masks.tensor
    ]
    assert sorted(kept) == sorted(s for s in sizes if s >= limit) and len(kept) < len(sizes)


def test_test_mode_has_no_targets_and_keeps_the_original_size(dicts):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 32, 64
    out = CityscapesShardMapper(cfg, False)(dicts[0])
    assert out["image"].shape == (3, 32, 64)
    assert (out["height"], out["width"]) == (64, 128)
    assert not {"instances", "sem_seg", "annotations"} & out.keys()


@pytest.mark.parametrize(
    ("architecture", "mask_on", "expected"),
    [
        ("GeneralizedRCNN", True, {"boxes", "masks"}),
        ("GeneralizedRCNN", False, {"boxes"}),
        ("SemanticSegmentor", False, {"sem_seg"}),
        ("DeepLabV3Segmentor", False, {"sem_seg"}),
        ("SeamlessPanoptic", True, {"boxes", "masks", "sem_seg"}),
    ],
)
def test_the_config_selects_the_targets(dicts, architecture, mask_on, expected):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = architecture, mask_on
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    out = CityscapesShardMapper(cfg, True)(dicts[0])
    found = {"sem_seg"} & out.keys()
    if "instances" in out:
        found |= {"boxes"} | ({"masks"} if out["instances"].has("gt_masks") else set())
    assert found == expected


def test_a_configured_crop_is_in_network_pixels(dicts):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (128,), 256  # twice the size
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [128, 96]
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = CityscapesShardMapper(cfg, True)
    heights = []
    for d in dicts:
        out, whole = mapper(d), _mapper([T.Resize((128, 256))])(d)
        assert out["image"].shape == (3, 128, 96) and out["instances"].image_size == (128, 96)
        found, all_found = (x["instances"].gt_boxes.tensor for x in (out, whole))
        tallest = (all_found[:, 3] - all_found[:, 1]).max() if len(all_found) else 0
        heights += [(box[3] - box[1] <= tallest).item() for box in found]
    assert heights and all(heights)


def test_a_fixed_size_squeezes_image_and_labels_alike(array_source, tmp_path):
    """8 x 12 pixels to 6 x 3: the horizon goes from row 4 to row 3, the car's edge from 4 to 1."""
    ids = np.full((8, 12), 23)  # sky
    ids[4:] = 7  # road
    ids[4:, :4] = 26000  # a car
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[4:, :, 0] = 200
    picture[4:, :4, 1] = 200
    write_shards([array_source("a_leftImg8bit.png", picture, ids)], tmp_path, split="train")
    (d,) = load_shards(tmp_path, split="train")
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = "SeamlessPanoptic", True
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.FIXED_SIZE = "RGB", "none", [6, 3]
    out = CityscapesShardMapper(cfg, True)(d)
    expected = [[10, 10, 10]] * 3 + [[13, 0, 0]] * 3
    assert out["sem_seg"].tolist() == expected
    red, green, _ = out["image"] > 100
    assert red.tolist() == [[train_id != 10 for train_id in row] for row in expected]
    assert green.tolist() == [[train_id == 13 for train_id in row] for row in expected]
    assert out["instances"].gt_boxes.tensor.tolist() == [[0, 3, 1, 6]]
    at_test = CityscapesShardMapper(cfg, False)(d)
    assert at_test["image"].equal(out["image"])
    assert (at_test["height"], at_test["width"]) == (8, 12), "predictions come back at this size"


def test_the_resize_backend_is_a_key(dicts):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (45,), "none"
    images = {}
    for backend in ("torch", "pil"):
        cfg.INPUT.RESIZE_BACKEND = backend
        images[backend] = CityscapesShardMapper(cfg, True)(dicts[0])["image"].int()
    assert 0 < (images["torch"] - images["pil"]).abs().max() <= 2
    cfg.INPUT.RESIZE_BACKEND = "opencv"
    with pytest.raises(D2CityscapesError, match=r"RESIZE_BACKEND 'opencv': use torch or pil"):
        CityscapesShardMapper(cfg, True)


def test_instances_that_are_too_small_are_groups_of_the_panoptic_target(array_source, tmp_path):
    """4 pixels of a car, of which 6 are asked for: no instance, but still car."""
    ids = np.full((8, 12), 7)
    ids[1:3, 2:4], ids[4:7, 6:9] = 26000, 26001
    picture = np.zeros((8, 12, 3), np.uint8)
    write_shards([array_source("a_leftImg8bit.png", picture, ids)], tmp_path, split="train")
    (d,) = load_shards(tmp_path, split="train")
    out = _mapper(panoptic=True, min_instance_area=6)(d)
    assert out["instances"].gt_boxes.tensor.tolist() == [[6, 4, 9, 7]]
    panoptic, segments = out["panoptic_seg"]
    found = {(s["category_id"], s["iscrowd"], s["area"]) for s in segments}
    assert found == {(0, 0, 96 - 13), (13, 1, 4), (13, 0, 9)}
    (group,) = [s["id"] for s in segments if s["iscrowd"]]
    assert (panoptic == group).nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert (out["sem_seg"] == 13).sum() == 13


def test_small_instances_have_weights(array_source, tmp_path):
    """Below 6 pixels; groups and stuff never, and nothing at a weight of 1."""
    ids = np.full((8, 12), 7)
    ids[1:3, 2:4], ids[4:7, 6:9], ids[7, 0] = 26000, 26001, 26
    picture = np.zeros((8, 12, 3), np.uint8)
    write_shards([array_source("a_leftImg8bit.png", picture, ids)], tmp_path, split="train")
    (d,) = load_shards(tmp_path, split="train")
    out = _mapper(small_instance_weight=3.0, small_instance_area=6)(d)
    weights = out["sem_seg_weights"]
    assert weights.dtype == torch.float32 and weights.sum() == 96 + 2 * 4
    assert (weights == 3).equal(torch.from_numpy(ids == 26000))
    assert out["instances"].gt_weights.tolist() == [3, 1]
    plain = _mapper()(d)
    assert "sem_seg_weights" not in plain and not plain["instances"].has("gt_weights")


@pytest.mark.parametrize(("weight", "area"), [(0.0, 4096), (3.0, -1)])
def test_weights_of_small_instances_are_above_0(weight, area):
    with pytest.raises(D2CityscapesError, match=r"SMALL_INSTANCE_WEIGHT .*use a weight above 0"):
        _mapper(small_instance_weight=weight, small_instance_area=area)


def test_the_weight_of_small_instances_is_a_key(dicts):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = "SeamlessPanoptic", True
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.INPUT.SMALL_INSTANCE_WEIGHT, cfg.INPUT.SMALL_INSTANCE_AREA = 3.0, 10**6
    outs = [CityscapesShardMapper(cfg, True)(d) for d in dicts]
    assert {3.0} == {w for x in outs for w in x["instances"].gt_weights.tolist()}
    assert {*torch.cat([x["sem_seg_weights"].unique() for x in outs]).tolist()} == {1.0, 3.0}

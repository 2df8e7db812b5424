"""What run.py does beside the graph: sizes, resizing, pasting, fusing, drawing."""

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Boxes, Instances

from d2_cityscapes.data.augmentation.resizing import resize_image
from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_panoptic
from d2_cityscapes.export import run
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.modeling.panoptic.fusion import fuse_panoptic
from d2_cityscapes.modeling.panoptic.postprocessing import paste_masks

CLASSES = [
    {"name": c.name, "label_id": c.label_id, "color": list(c.color), "is_thing": c.is_thing}
    for c in CITYSCAPES.classes
]
THINGS = [c.train_id for c in CITYSCAPES.things]


@pytest.mark.parametrize("kind", ["torch", "pil", "plain"])
def test_pictures_are_resized_as_by_the_mapper(kind):
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width, h, w = map(int, rng.integers(1, 80, 4))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        wanted = resize_image(torch.from_numpy(image).permute(2, 0, 1), (h, w), backend=kind)
        found = run._resized(image, (h, w), kind)
        off = np.abs(found.astype(int) - wanted.permute(1, 2, 0).numpy())
        # to the bit, but for halves of a grey level that float32 rounds either way
        assert off.max() <= (kind == "plain") and off.mean() < 0.01, (height, width, h, w)


@pytest.mark.parametrize(("short", "longest"), [(64, 100), (64, 1000), (0, 1000), (801, 1333)])
def test_sizes_are_detectron2s(short, longest):
    wanted = {"network": None, "short_edge": short, "longest_edge": longest}
    for height, width in [(64, 128), (99, 50), (31, 31), (7, 200), (1080, 1921)]:
        image = np.zeros((height, width, 3), dtype=np.uint8)
        transform = ResizeShortestEdge([short, short], longest).get_transform(image)
        size = (getattr(transform, "new_h", height), getattr(transform, "new_w", width))
        assert run.network_size(wanted, height, width) == size
    assert run.network_size({**wanted, "network": [32, 64]}, 99, 50) == (32, 64)


def detections(number=12, size=(50, 90)):
    rng = np.random.default_rng(4)
    corners = rng.uniform(-5, 80, (number, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1) + 2], axis=1)
    boxes = boxes.clip(0, np.array([size[1], size[0]] * 2, dtype=np.float32))
    boxes[3, 2] = boxes[3, 0]  # of no area
    return {
        "boxes": boxes,
        "scores": rng.uniform(0.3, 1, number).astype(np.float32),
        "classes": rng.integers(0, 8, number),
        "masks": rng.uniform(0, 1, (number, 14, 14)).astype(np.float32),
    }


def test_masks_are_pasted_as_by_the_model_and_empty_boxes_dropped():
    outputs, size = detections(), (50, 90)
    found = run._instances(outputs, size, size)
    kept = ((outputs["boxes"][:, 2:] - outputs["boxes"][:, :2]) > 0).all(axis=1)
    assert not kept.all() and kept.sum() > 5
    cells, boxes = (torch.from_numpy(outputs[name][kept]) for name in ("masks", "boxes"))
    wanted = paste_masks(cells, boxes, size).numpy()
    assert np.array_equal(found["masks"], wanted) and wanted.any(axis=(1, 2)).sum() > 5
    twice = run._instances(outputs, size, (100, 180))
    assert np.allclose(twice["boxes"], outputs["boxes"][kept] * 2)


def test_panoptics_are_fused_as_by_the_model():
    size = (50, 90)
    own = run._instances(detections(), size, size)
    labels = np.random.default_rng(1).integers(0, 19, (5, 9)).repeat(10, 0).repeat(10, 1)
    rules = {"score_threshold": 0.5, "overlap_threshold": 0.4, "stuff_area_limit": 120}
    about = {"panoptic": rules, "classes": CLASSES, "things": THINGS}
    instances = Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(own["boxes"])),
        scores=torch.from_numpy(own["scores"]),
        pred_classes=torch.from_numpy(own["classes"]),
        pred_masks=torch.from_numpy(own["masks"]),
    )
    wanted = ids_of_panoptic(*fuse_panoptic(torch.from_numpy(labels), instances, **rules))
    assert (wanted >= 1000).any() and ((wanted > 0) & (wanted < 1000)).any() and (wanted == 0).any()
    assert np.array_equal(run._fused(labels.astype(np.uint8), own, about), wanted)


def test_drawings_show_the_colours_of_classes_and_outline_instances():
    about = {"classes": CLASSES, "things": THINGS}
    image = np.full((4, 6, 3), 100, dtype=np.uint8)
    labels = np.zeros((4, 6), dtype=np.uint8)
    labels[:, 3:] = 255
    drawn = run.draw(image, {"sem_seg": labels}, about)
    assert (drawn[:, :3] == [(100 + c) // 2 for c in CITYSCAPES.classes[0].color]).all()
    assert (drawn[:, 3:] == 100).all()
    ids = np.full((4, 6), 7)
    ids[1:3, 1:4] = 26000
    drawn = run.draw(image, {"panoptic_ids": ids}, about)
    assert (drawn[1, 1:4] == 255).all() and not (drawn[0] == 255).any()


def test_what_is_no_picture_is_refused():
    about = {"input": {"fixed": None}}
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="a picture is"):
            run._predict(about, lambda inputs: [], image)

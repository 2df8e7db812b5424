"""TEST.AUG for boxes, masks and panoptics: Detectron2's own, and what follows from one view."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.structures import Instances

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.panoptic.fusion import fuse_panoptic
from d2_cityscapes.modeling.test_time.build import augmented, check_test_time


def _rcnn_of(model) -> GeneralizedRCNN:
    """What of a panoptic model Detectron2's class looks at, as an RCNN of its own."""
    return GeneralizedRCNN(
        backbone=model.backbone,
        proposal_generator=model.proposal_generator,
        roi_heads=model.roi_heads,
        pixel_mean=model.pixel_mean.flatten().tolist(),
        pixel_std=model.pixel_std.flatten().tolist(),
    ).eval()


@pytest.fixture
def tested_cfg(tiny_cfg):
    """`tiny_cfg` tested in two sizes and mirrored, with some detections of random weights."""
    tiny_cfg.TEST.AUG.ENABLED = True
    tiny_cfg.TEST.AUG.MIN_SIZES, tiny_cfg.TEST.AUG.MAX_SIZE = (48, 64), 256
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 12
    tiny_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.05
    return tiny_cfg


def _model(cfg):
    """With random weights whose boxes and masks are not all alike."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    torch.nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=0.5)
    return model


def _inputs(batch) -> list[dict]:
    return [{"image": x["image"], "height": 96, "width": 192} for x in batch]


def _assert_same(a: Instances, b: Instances) -> None:
    assert a.get_fields().keys() == b.get_fields().keys() and a.image_size == b.image_size
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
    for name in ("scores", "pred_classes", "pred_masks"):
        assert a.get(name).equal(b.get(name)), name


def test_boxes_and_masks_are_detectron2s(tested_cfg, batch):
    tested_cfg.MODEL.META_ARCHITECTURE = "StagedRCNN"
    model, batch = _model(tested_cfg), batch[1:]
    found = augmented(tested_cfg, model)(_inputs(batch))
    expected = GeneralizedRCNNWithTTA(tested_cfg, model, batch_size=1)
    with torch.no_grad():
        theirs = expected(_inputs(batch))
        plain = model(_inputs(batch))
    assert not model.training and model.roi_heads.mask_on
    assert len(found) == 2
    for a, b, alone in zip(found, theirs, plain, strict=True):
        _assert_same(a["instances"], b["instances"])
        assert len(a["instances"]) > 3
        boxes = [x["instances"].pred_boxes.tensor for x in (a, alone)]
        assert boxes[0].shape != boxes[1].shape or not boxes[0].equal(boxes[1])


def test_boxes_without_masks(tested_cfg, batch):
    tested_cfg.MODEL.MASK_ON = False
    torch.manual_seed(0)
    model = build_model(tested_cfg).eval()
    found = augmented(tested_cfg, model)(_inputs(batch)[:1])[0]["instances"]
    assert "pred_masks" not in found.get_fields() and len(found)


def test_an_image_without_objects(tested_cfg, batch):
    tested_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.0
    found = augmented(tested_cfg, _model(tested_cfg))(_inputs(batch)[:1])[0]["instances"]
    assert len(found) == 0 and found.pred_masks.shape == (0, 96, 192)


def test_panoptics_fuse_the_means_of_both_parts(panoptic_cfg, tested_cfg, batch):
    model, inputs = _model(tested_cfg), _inputs(batch)[:1]
    found = augmented(tested_cfg, model)(inputs)[0]
    with torch.no_grad():
        alone = GeneralizedRCNNWithTTA(tested_cfg, _rcnn_of(model), batch_size=1)(inputs)[0]
    _assert_same(found["instances"], alone["instances"])
    total = torch.zeros_like(found["sem_seg"])
    for view in DatasetMapperTTA(tested_cfg)(inputs[0]):
        with torch.no_grad():
            own = model([view])[0]["sem_seg"].softmax(0)
        mirrored = len(view["transforms"].transforms) == 3  # to the wanted size, in size, mirrored
        total += own.flip(2) if mirrored else own
    torch.testing.assert_close(found["sem_seg"], total / 4)
    fused, segments = fuse_panoptic(found["sem_seg"], found["instances"])
    assert found["panoptic_seg"][0].equal(fused) and found["panoptic_seg"][1] == segments
    tested_cfg.TEST.SEM_SEG_SCORES = False
    model.sem_seg_scores = False
    labels = augmented(tested_cfg, model)(inputs)[0]
    assert labels["sem_seg"].equal(found["sem_seg"].argmax(0).to(torch.uint8))
    assert labels["panoptic_seg"][0].equal(fused)


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("RetinaNet", {"AUG.ENABLED": True}, "TEST.AUG.ENABLED True: not for RetinaNet"),
        ("StagedRCNN", {"SLIDING_WINDOW.ENABLED": True}, "not for StagedRCNN, whose instances"),
        ("SeamlessPanoptic", {"SLIDING_WINDOW.ENABLED": True}, "for models of semantics alone"),
        ("StagedRCNN", {"AUG.ENABLED": True, "AUG.MIN_SIZES": ()}, r"MIN_SIZES \(\): use one"),
        ("StagedRCNN", {"AUG.ENABLED": True, "AUG.MIN_SIZES": (0.5,)}, r"MIN_SIZES \(0.5,\)"),
        ("StagedRCNN", {"AUG.ENABLED": True, "AUG.MAX_SIZE": 0}, "MAX_SIZE 0: use a whole"),
        (
            "StagedSegmentor",
            {"SLIDING_WINDOW.ENABLED": True, "SLIDING_WINDOW.SIZE": [64]},
            r"SIZE \[64\]: use \[height, width\]",
        ),
        (
            "StagedSegmentor",
            {"SLIDING_WINDOW.ENABLED": True, "SLIDING_WINDOW.SIZE": [64, 32]},
            r"SIZE \[64, 32\]: use 64 pixels or more",
        ),
        (
            "StagedSegmentor",
            {"SLIDING_WINDOW.ENABLED": True, "SLIDING_WINDOW.STRIDE": [512, 2048]},
            r"STRIDE \[512, 2048\] is larger than SIZE",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(tiny_cfg, architecture, settings, message):
    tiny_cfg.MODEL.META_ARCHITECTURE = architecture
    check_test_time(tiny_cfg)
    for key, value in settings.items():
        section, name = key.split(".")
        tiny_cfg.TEST[section][name] = value
    with pytest.raises(D2CityscapesError, match=message) as caught:
        check_test_time(tiny_cfg)
    assert "\n" not in str(caught.value)

"""A trained model and pictures: alone, several at once, in little memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2_cityscapes.engine.prediction import Predictor
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.structures import CroppedMasks


@pytest.fixture
def scenes(scene: np.ndarray) -> list[np.ndarray]:
    return [scene, np.ascontiguousarray(scene[:, ::-1]), np.roll(scene, 40, axis=1)]


@pytest.mark.parametrize("family", ["cfg", "panoptic_cfg"])
def test_several_at_once_are_those_of_one_at_a_time(family, request, scenes) -> None:
    """Up to rounding: scores to 1e-4, boxes to 1e-2 pixels, masks to a thousandth."""
    predictor = Predictor(request.getfixturevalue(family))
    together = predictor.batch(scenes)
    for one, other in zip(map(predictor, scenes), together, strict=True):
        torch.testing.assert_close(one["sem_seg"], other["sem_seg"], atol=1e-4, rtol=1e-4)
        if family == "cfg":
            continue
        a, b = one["instances"], other["instances"]
        assert len(a) == len(b) > 0 and a.pred_classes.equal(b.pred_classes)
        torch.testing.assert_close(a.scores, b.scores, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=1e-2, rtol=1e-4)
        assert (a.pred_masks ^ b.pred_masks).float().mean() < 1e-3


@pytest.mark.parametrize("family", ["cfg", "panoptic_cfg", "instance_cfg"])
def test_lean_is_the_same_in_less(family, request, scene) -> None:
    """Of a picture that is larger than what the network sees."""
    cfg, size = request.getfixturevalue(family), (200, 400)
    image = np.repeat(np.repeat(scene, 4, axis=0), 4, axis=1)[: size[0], : size[1]].copy()
    whole, lean = Predictor(cfg)(image), Predictor(cfg, lean=True)(image)
    if "sem_seg" in whole:
        assert lean["sem_seg"].dtype == torch.uint8 and lean["sem_seg"].shape == size
        assert (lean["sem_seg"] == whole["sem_seg"].argmax(dim=0)).float().mean() > 0.999
    if "instances" in whole:
        assert isinstance(lean["instances"].pred_masks, CroppedMasks)
        assert lean["instances"].pred_masks.tensor.equal(whole["instances"].pred_masks)
        assert whole["instances"].pred_masks.any()
    if "panoptic_seg" in whole:
        assert lean["panoptic_seg"][0].equal(whole["panoptic_seg"][0])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        "picture.png",
    ],
)
def test_what_is_no_picture_is_one_line(cfg, image) -> None:
    with pytest.raises(D2CityscapesError, match=r"a picture is an \(H, W, 3\) array of uint8"):
        Predictor(cfg)(image)


def test_the_best_score_counts_what_was_not_kept(instance_cfg, scene) -> None:
    instance_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.99
    predictor = Predictor(instance_cfg)
    assert predictor.best_score is None
    assert len(predictor(scene)["instances"]) == 0
    assert 0 < predictor.best_score < 0.99
    instance_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    again = Predictor(instance_cfg)
    kept = again(scene)["instances"].scores.max()
    assert again.best_score == pytest.approx(predictor.best_score) and again.best_score >= kept

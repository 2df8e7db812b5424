"""Instances for supervision's tools."""

from __future__ import annotations

import numpy as np
import pytest

from d2_cityscapes.engine.prediction import Predictor, to_supervision
from d2_cityscapes.errors import D2CityscapesError

supervision = pytest.importorskip("supervision")


@pytest.mark.parametrize("lean", [False, True])
def test_detections_are_the_instances(instance_cfg, scene, lean) -> None:
    predictor = Predictor(instance_cfg, lean=lean)
    output = predictor(scene)
    found, expected = to_supervision(output, predictor.table), output["instances"]
    assert isinstance(found, supervision.Detections) and len(found) == len(expected) > 1
    order = np.argsort(-expected.scores.numpy(), kind="stable")
    np.testing.assert_allclose(found.confidence, expected.scores.numpy()[order])
    np.testing.assert_allclose(found.xyxy, expected.pred_boxes.tensor.numpy()[order])
    masks = expected.pred_masks.tensor if lean else expected.pred_masks
    assert (found.mask == masks.numpy()[order]).all()
    names = [predictor.table.things[n].name for n in expected.pred_classes.numpy()[order]]
    assert found.data["class_name"].tolist() == names
    middle = float(np.median(found.confidence))
    assert len(to_supervision(output, score_threshold=middle)) == (found.confidence >= middle).sum()
    drawn = supervision.BoxAnnotator().annotate(scene.copy(), found)
    assert (drawn != scene).any()


def test_nothing_found_is_empty(instance_cfg, scene) -> None:
    output = Predictor(instance_cfg)(scene)
    assert len(to_supervision(output, score_threshold=1.1)) == 0


def test_semantics_have_no_instances(cfg, scene) -> None:
    with pytest.raises(D2CityscapesError, match="this model predicts sem_seg: take one"):
        to_supervision(Predictor(cfg)(scene))

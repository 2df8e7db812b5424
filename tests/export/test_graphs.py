"""The graphs with run.py around them give what the model gives, for pictures of any size."""

import numpy as np
import pytest
import torch
from torch import nn

from d2_cityscapes.engine.prediction.loading import model_config
from d2_cityscapes.engine.prediction.predictor import Predictor
from d2_cityscapes.export import build
from d2_cityscapes.export.agreement import Agreement
from d2_cityscapes.export.arrays import as_arrays
from d2_cityscapes.export.build import build_graph
from d2_cityscapes.export.kinds import ExportError
from d2_cityscapes.labels import CITYSCAPES

MODELS = {
    "semantic": ("quick/semantic.yaml", []),
    "deeplab": ("quick/deeplab.yaml", ["INPUT.FIXED_SIZE", "[]", "INPUT.MIN_SIZE_TEST", 40]),
    "instances": (
        "quick/instance.yaml",
        ["MODEL.ANCHOR_GENERATOR.NAME", "RoundedAnchorGenerator", "INPUT.RESIZE_BACKEND", "plain"],
    ),
    "seamless": ("quick/panoptic.yaml", ["INPUT.RESIZE_BACKEND", "pil"]),
    "softmax masks": (
        "quick/instance.yaml",
        [
            "MODEL.ROI_MASK_HEAD.NAME",
            "SoftmaxMaskRCNNHead",
            "INPUT.FORMAT",
            "BGR",
            "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK",
            True,
        ],
    ),
}


def compared(folder, run_graph, pictures, size=None) -> Agreement:
    cfg = model_config(folder)
    model, export, found = Predictor(cfg), run_graph(cfg, size), Agreement()
    for picture in pictures:
        found.add(as_arrays(model(picture), CITYSCAPES), export(picture))
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "deeplab" else ()) for n in MODELS]
)
def test_equal_the_model_on_pictures_that_are_resized_and_padded(make_run, run_graph, street, name):
    config, opts = MODELS[name]
    folder = make_run(config, *opts)
    if name == "softmax masks":  # random ones are background all over
        weights = torch.load(folder / "model_final.pth", weights_only=True)
        weights["model"]["roi_heads.mask_head.predictor.bias"][0] += 0.5
        torch.save(weights, folder / "model_final.pth")
    # the network's own size, more, less and with padding, and black
    pictures = [street(64, 128), street(150, 211), street(50, 70), np.zeros((64, 96, 3), np.uint8)]
    found = compared(folder, run_graph, pictures)
    assert found.problems() == [] and found.pictures == 4
    assert found.box_difference < 0.01 and found.score_difference < 1e-4
    if name in ("instances", "seamless", "softmax masks"):
        assert found.detections > 40 and found.mask_pixels > 1000
    if name in ("semantic", "deeplab", "seamless"):
        assert found.pixels == sum(picture[..., 0].size for picture in pictures)
    if name == "seamless":
        assert found.panoptic_pixels == found.pixels


def test_a_graph_of_one_size_pads_by_itself_and_takes_no_other(make_run, run_graph, street):
    folder = make_run("quick/panoptic.yaml")
    found = compared(folder, run_graph, [street(90, 170)], size=(90, 170))
    assert found.problems() == [] and found.detections
    with pytest.raises(ValueError, match=r"pictures of \[90, 170\]"):
        run_graph(model_config(folder), (90, 170))(street(90, 171))


@pytest.mark.parametrize(
    ("config", "opts", "message"),
    [
        ("quick/instance.yaml", ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"], "CascadeROIHeads"),
        ("quick/instance.yaml", ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"], "POOLER_TYPE"),
    ],
)
def test_models_without_a_graph_are_named(make_run, config, opts, message):
    extra = [
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        True,
        "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT",
        0.0,
    ]
    folder = make_run(config, *extra, *opts)
    with pytest.raises(ExportError, match=message):
        build_graph(model_config(folder), CITYSCAPES)


def test_another_architecture_is_named_with_those_that_can_be(make_run, monkeypatch):
    monkeypatch.setattr(build, "build_model", lambda cfg: nn.Identity())
    with pytest.raises(ExportError, match=r"META_ARCHITECTURE Identity has no graph.*StagedRCNN"):
        build_graph(model_config(make_run("quick/semantic.yaml")), CITYSCAPES)

"""Detectron2's new baselines: our config of them has their names, shapes and outputs."""

import pickle

import pytest
import torch
from converted_detectors import (
    SMALL,
    assert_same,
    load_converted,
    picture_of,
    proposals_and_detections,
    randomise,
    spread_classes,
)
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN

from d2_cityscapes.convert import convert_file
from d2_cityscapes.engine.checks.values import check_values
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.modeling.build import build_model

CONFIG = "detectron2_mask_rcnn_R_50_FPN_LSJ.yaml"
LSJ = "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py"
PICTURE = picture_of(96, 160)


def lazy_model(classes: int) -> dict:
    """Detectron2's own config of the model."""
    wanted = model_zoo.get_config(LSJ).model
    wanted.roi_heads.num_classes = classes
    return wanted


def small_model(classes: int) -> GeneralizedRCNN:
    """The same with the widths of `SMALL`, on the CPU."""
    wanted = lazy_model(classes)
    wanted.backbone.bottom_up.stages.depth = 18
    del wanted.backbone.bottom_up.stages["stride_in_1x1"]  # basic blocks have no 1x1
    wanted.backbone.out_channels = 32
    wanted.proposal_generator.head.in_channels = 32
    heads = wanted.roi_heads
    heads.box_head.input_shape = ShapeSpec(channels=32, height=7, width=7)
    heads.mask_head.input_shape = ShapeSpec(channels=32, height=14, width=14)
    heads.box_head.conv_dims, heads.box_head.fc_dims = [32] * 4, [64]
    heads.box_predictor.input_shape = ShapeSpec(channels=64)
    heads.mask_head.conv_dims = [32] * 5
    model = randomise(instantiate(wanted))
    spread_classes(model.roi_heads.box_predictor.cls_score, lambda: model([{"image": PICTURE}]))
    return model


@pytest.mark.parametrize("depth", [50, 101])
def test_names_and_shapes(repository, depth):
    with torch.device("meta"):
        wanted = lazy_model(8)
        wanted.backbone.bottom_up.stages.depth = depth
        theirs = instantiate(wanted).state_dict()
        opts = ["MODEL.RESNETS.DEPTH", depth, "MODEL.WEIGHTS", "", "MODEL.DEVICE", "meta"]
        cfg = load_config(repository / "configs" / "converted" / CONFIG, opts, train=False)
        ours = build_model(cfg).state_dict()
    check_values(cfg)  # as a training does first
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is wanted.backbone.bottom_up.stages.stride_in_1x1
    assert list(wanted.pixel_mean) == cfg.MODEL.PIXEL_MEAN
    assert list(wanted.pixel_std) == cfg.MODEL.PIXEL_STD
    assert wanted.input_format == cfg.INPUT.FORMAT


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return small_model(80)


def as_in_the_zoo(model: GeneralizedRCNN, path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))


@pytest.mark.parametrize("norm", ["", "FrozenBN"])
def test_same_outputs(repository, tmp_path, source, norm):
    """Of the zoo's 80 classes, as it is; also with norms for small batches."""
    as_in_the_zoo(source, tmp_path / "model_final.pkl")
    norms = ("MODEL.RESNETS", "MODEL.FPN", "MODEL.ROI_BOX_HEAD", "MODEL.ROI_MASK_HEAD")
    opts = [word for key in norms for word in (f"{key}.NORM", norm)] if norm else []
    opts += [
        *SMALL,
        "MODEL.ROI_HEADS.NUM_CLASSES",
        80,
        "DATASETS.TRAIN",
        "()",
        "DATASETS.TEST",
        "()",
    ]
    model = load_converted(repository, CONFIG, tmp_path / "model_final.pkl", opts)
    expected = proposals_and_detections(source, PICTURE)
    found = proposals_and_detections(model, PICTURE)
    assert len(expected[1]["classes"].unique()) > 2, "detections that say nothing"
    assert_same(found[0], expected[0], 1e-3)
    assert_same(found[1], expected[1], 1e-3)


def test_for_cityscapes_only_the_predictors_change(repository, tmp_path, source):
    as_in_the_zoo(source, tmp_path / "model_final.pkl")
    report = convert_file("coco-to-cityscapes", tmp_path / "model_final.pkl", tmp_path / "c.pth")
    assert f"{len(source.state_dict())} tensors in the file: " in "\n".join(report)
    assert "matched, 6 reshaped" in "\n".join(report)
    model = load_converted(repository, CONFIG, tmp_path / "c.pth", SMALL)
    expected = proposals_and_detections(source, PICTURE)[0]
    assert_same(proposals_and_detections(model, PICTURE)[0], expected, 1e-3)

"""The names that other people's code relies on."""

from __future__ import annotations

import importlib
import inspect

import pytest
from detectron2.data import DatasetCatalog
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY

import d2_cityscapes as d2c

NAMES = {
    "d2_cityscapes": ["get_cfg", "add_d2_cityscapes_config", "load", "__version__"],
    "d2_cityscapes.data": [
        "ShardReader",
        "ShardError",
        "write_shards",
        "CityscapesShardMapper",
        "register_cityscapes_shards",
    ],
    "d2_cityscapes.layers": ["MiniDL", "bootstrapped_cross_entropy", "giou_loss"],
    "d2_cityscapes.modeling": ["fuse_panoptic", "build_model", "freeze_modules"],
    "d2_cityscapes.engine": ["Trainer", "FreezeHook", "ValidationLossHook", "load_config"],
    "d2_cityscapes.engine.prediction": [
        "Options",
        "PictureError",
        "Predictor",
        "find_pictures",
        "load",
        "predict",
        "predict_pictures",
        "to_supervision",
    ],
    "d2_cityscapes.convert": ["convert_file", "torchvision_to_detectron2", "coco_to_cityscapes"],
    "d2_cityscapes.export": ["export_model", "score_export", "ExportError"],
    "d2_cityscapes.structures": ["CroppedMasks", "IdMapMasks"],
    "d2_cityscapes.evaluation": ["PanopticQuality", "build_evaluator"],
}


@pytest.mark.parametrize("module", NAMES)
def test_public_names_exist_and_are_listed(module):
    package = importlib.import_module(module)
    for name in NAMES[module]:
        assert getattr(package, name) is not None
        assert name in package.__all__


def test_importing_the_package_registers_its_components():
    assert "GIoUROIHeads" in ROI_HEADS_REGISTRY
    assert "build_timm_fpn_backbone" in BACKBONE_REGISTRY
    assert "KMeansAnchorGenerator" in ANCHOR_GENERATOR_REGISTRY
    assert {"SeamlessPanoptic", "DeepLabV3Segmentor"} <= set(dict(META_ARCH_REGISTRY))
    assert "MiniDLSemSegHead" in SEM_SEG_HEADS_REGISTRY
    roles = ("train", "val", "train_extra", "val_select", "val_report")
    assert {f"cityscapes_shards_{role}" for role in roles} <= set(DatasetCatalog.list())


def test_fuse_panoptic_takes_the_documented_keywords():
    from d2_cityscapes.modeling import fuse_panoptic

    parameters = inspect.signature(fuse_panoptic).parameters
    assert list(parameters)[:2] == ["sem_seg", "instances"]
    defaults = {name: parameters[name].default for name in list(parameters)[2:5]}
    assert defaults == {
        "overlap_threshold": 0.5,
        "score_threshold": 0.5,
        "stuff_area_limit": 4096,
    }


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        d2c.nonsense  # noqa: B018

"""A trained model as the graph that is exported."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, SemanticSegmentor
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from torch import Tensor, nn

from d2_cityscapes.config import value_of
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer
from d2_cityscapes.export.graph.instances import InstanceGraph, PanopticGraph
from d2_cityscapes.export.graph.layers import make_traceable
from d2_cityscapes.export.graph.pixels import Pixels, Sizes
from d2_cityscapes.export.graph.semantics import SemanticGraph
from d2_cityscapes.export.kinds import ExportError
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.modeling.anchors.rounded import RoundedAnchorGenerator
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.deeplab import DeepLabV3Segmentor
from d2_cityscapes.modeling.panoptic.seamless import SeamlessPanoptic

__all__ = ["SizedGraph", "build_graph", "check_exportable"]

# How a model computes, not what: a graph has its own ways.
_HOW = {
    "MODEL.COMPILE": False,
    "MODEL.RESNETS.FOLD_FROZEN_NORM": False,
    "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING": False,
    "SOLVER.CHANNELS_LAST": False,
}
_ONE_LOOK = ("TEST.AUG.ENABLED", "TEST.SLIDING_WINDOW.ENABLED")


def check_exportable(cfg: CfgNode) -> None:
    """Refuse, before anything is built, what no graph holds.

    Raises:
        ExportError: several looks at a picture.
    """
    for key in _ONE_LOOK:
        if value_of(cfg, key):
            raise ExportError(f"{key} True: an export looks at a picture once; set it to False")


def build_graph(cfg: CfgNode, table: LabelTable, *, sizes: Sizes | None = None) -> nn.Module:
    """The model of a config with its MODEL.WEIGHTS, on the CPU, from pixels to results.

    Args:
        cfg: of the model.
        table: the classes.
        sizes: of a fixed graph; None for pictures of any size.

    Returns:
        A module with `outputs`, the names of what it gives, and `pixels`. See the classes of
        `d2_cityscapes.export.graph` for what it takes.

    Raises:
        ExportError: a model that has no graph.
        D2CityscapesError: weights that do not fit.
    """
    model: Any = build_model(_computing_plainly(cfg)).eval()
    _check_parts(model)
    Checkpointer(model, table=table).load(cfg.MODEL.WEIGHTS)
    model.requires_grad_(False)  # norms take another way where they train
    make_traceable(model)
    pixels = Pixels(
        model.pixel_mean,
        model.pixel_std,
        bgr=cfg.INPUT.FORMAT == "BGR",
        multiple=getattr(model.backbone, "size_divisibility", 0) or 1,
        sizes=sizes,
    )
    if isinstance(model, DeepLabV3Segmentor):
        graph: nn.Module = SemanticGraph(pixels, _DeepLab(model))
    elif isinstance(model, SemanticSegmentor):
        graph = SemanticGraph(pixels, _Segmentor(model))
    elif isinstance(model, SeamlessPanoptic):
        graph = PanopticGraph(pixels, model)
    else:
        graph = InstanceGraph(pixels, model)
    return graph.eval()


class SizedGraph(nn.Module):
    """A graph that takes pictures of one size, and nothing beside them."""

    size: Tensor

    def __init__(self, graph: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.inner = graph  # a traced module has a `graph` of its own
        self.register_buffer("size", torch.tensor([*sizes.network, *sizes.output]))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.inner(image, self.size)


class _DeepLab(nn.Module):
    def __init__(self, model: DeepLabV3Segmentor) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.logits(x)["out"][:, : self.model.num_classes]


class _Segmentor(nn.Module):
    def __init__(self, model: SemanticSegmentor) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.sem_seg_head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x), None)[0]


def _computing_plainly(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    for key, value in _HOW.items():
        *above, last = key.split(".")
        value_of(cfg, ".".join(above))[last] = value
    cfg.freeze()
    return cfg


def _check_parts(model: Any) -> None:
    """Refuse parts whose inference the graphs do not have.

    Raises:
        ExportError: naming the part and what can be exported.
    """
    if isinstance(model, DeepLabV3Segmentor | SemanticSegmentor):
        return
    if not isinstance(model, GeneralizedRCNN) or (
        isinstance(model, PanopticFPN) and not isinstance(model, SeamlessPanoptic)
    ):
        raise ExportError(
            f"MODEL.META_ARCHITECTURE {type(model).__name__} has no graph: exported are "
            "DeepLabV3Segmentor, StagedSegmentor, StagedRCNN, SeamlessPanoptic and Detectron2's "
            "SemanticSegmentor and GeneralizedRCNN; --format detectron2 and safetensors take others"
        )
    rpn, heads = model.proposal_generator, model.roi_heads
    parts = {
        "MODEL.PROPOSAL_GENERATOR.NAME": (rpn, lambda: _is_plain_rpn(rpn)),
        "MODEL.ROI_HEADS.NAME": (heads, lambda: _are_plain_heads(heads)),
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": (heads, lambda: _align(heads)),
    }
    for key, (part, is_known) in parts.items():
        if not is_known():
            raise ExportError(
                f"{key}: {type(part).__name__} has no graph: exported are RPN with upright "
                "anchors, StandardROIHeads and those made of it, with ROIAlign and without "
                "keypoints"
            )


def _is_plain_rpn(rpn: Any) -> bool:
    generator = getattr(rpn, "anchor_generator", None)
    grids = [kind._grid_anchors for kind in (DefaultAnchorGenerator, RoundedAnchorGenerator)]
    return (
        isinstance(generator, DefaultAnchorGenerator)
        and type(generator)._grid_anchors in grids
        and type(getattr(rpn, "box2box_transform", None)) is Box2BoxTransform
    )


def _are_plain_heads(heads: Any) -> bool:
    standard = isinstance(heads, StandardROIHeads) and not isinstance(heads, CascadeROIHeads)
    return standard and not heads.keypoint_on


def _align(heads: Any) -> bool:
    poolers = [heads.box_pooler, *([heads.mask_pooler] if heads.mask_on else [])]
    return all(isinstance(level, ROIAlign) for own in poolers for level in own.level_poolers)

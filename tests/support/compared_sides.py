"""The two sides whose memory is compared: the same network and batch, as ours and as stock's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from d2_cityscapes.structures import IdMapMasks

__all__ = ["as_stock", "images", "stock_optimizer", "stock_step"]


def _scene(size: tuple[int, int], objects: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """(H, W) int16 id map of rectangles before each other, and the ids that are visible in it."""
    rng = np.random.default_rng(seed)
    ids = np.full(size, 7, dtype=np.int16)
    for n in range(objects):
        height, width = (int(s * rng.uniform(0.03, 0.15)) + 4 for s in size)
        top, left = rng.integers(0, size[0] - height), rng.integers(0, size[1] - width)
        ids[top : top + height, left : left + width] = 26000 + n
    return ids, [n for n in range(26000, 26000 + objects) if (ids == n).any()]


def images(cfg: CfgNode, size: tuple[int, int], number: int, objects: int, *, stock: bool) -> list:
    """As the mapper gives them; the masks of stock are bitmaps."""
    batch = []
    for seed in range(number):
        ids, visible = _scene(size, objects, seed)
        pixels = np.random.default_rng(seed).integers(0, 256, (3, *size), dtype=np.uint8)
        masks = IdMapMasks(torch.from_numpy(ids), torch.tensor(visible, dtype=torch.int16))
        truth = Instances(size)
        truth.gt_boxes = Boxes(masks.get_bounding_boxes().tensor)
        truth.gt_classes = torch.arange(len(visible)) % cfg.MODEL.ROI_HEADS.NUM_CLASSES
        truth.gt_masks = BitMasks(masks.tensor) if stock else masks
        image = {"image": torch.from_numpy(pixels), "instances": truth, "file_name": str(seed)}
        image["height"], image["width"] = size
        image["sem_seg"] = torch.from_numpy((ids % 19).astype(np.int64))
        batch.append(image)
    return batch


def as_stock(cfg: CfgNode) -> CfgNode:
    """The same network from Detectron2's own parts."""
    cfg = cfg.clone()
    cfg.defrost()
    model = cfg.MODEL
    kind = {
        "StagedRCNN": "GeneralizedRCNN",
        "StagedSegmentor": "SemanticSegmentor",
        "DeepLabV3Segmentor": "SemanticSegmentor",
        "SeamlessPanoptic": "PanopticFPN",
    }[model.META_ARCHITECTURE]
    if model.META_ARCHITECTURE == "DeepLabV3Segmentor":
        _deeplab(cfg)
    model.META_ARCHITECTURE = kind
    if "backbone.bottom_up" in model.FREEZE.MODULES:
        model.BACKBONE.FREEZE_AT = 5  # all of it, as Detectron2 says it
    model.BACKBONE.ACTIVATION_CHECKPOINTING = False
    model.RESNETS.FOLD_FROZEN_NORM = False
    model.ROI_HEADS.NAME = "StandardROIHeads"
    model.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    model.ROI_BOX_HEAD.GIOU_WEIGHT = 0.0
    model.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    model.RPN.HEAD_NAME = "StandardRPNHead"
    model.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    if model.BACKBONE.NAME == "build_seamless_resnet_fpn_backbone":
        model.BACKBONE.NAME = "build_resnet_fpn_backbone"
    if model.SEM_SEG_HEAD.NAME == "MiniDLSemSegHead":
        model.SEM_SEG_HEAD.NAME = "SemSegFPNHead"
    cfg.freeze()
    return cfg


def _deeplab(cfg: CfgNode) -> None:
    """DeepLabv3 of Detectron2's project of that name, dilated as torchvision's (stride 8)."""
    from detectron2.projects.deeplab import add_deeplab_config

    head, resnet = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.RESNETS
    classes = head.NUM_CLASSES
    decay = cfg.SOLVER.WEIGHT_DECAY
    add_deeplab_config(cfg)
    cfg.SOLVER.WEIGHT_DECAY = decay
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    resnet.STEM_TYPE, resnet.STRIDE_IN_1X1 = "basic", False
    resnet.RES4_DILATION, resnet.RES5_DILATION, resnet.RES5_MULTI_GRID = 2, 4, [1, 1, 1]
    resnet.OUT_FEATURES = ["res5"]
    head.NAME, head.NUM_CLASSES, head.IN_FEATURES = "DeepLabV3Head", classes, ["res5"]
    head.ASPP_CHANNELS, head.ASPP_DILATIONS, head.CONVS_DIM = 256, [12, 24, 36], 256
    head.COMMON_STRIDE, head.NORM, head.LOSS_TYPE = 8, "BN", "cross_entropy"


def stock_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """PyTorch's of the same kind; Detectron2 0.6 builds SGD alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    kind = cfg.SOLVER.OPTIMIZER
    if kind == "SGD":
        return torch.optim.SGD(parameters, cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM)
    return getattr(torch.optim, {"ADAM": "Adam", "ADAMW": "AdamW"}[kind])(parameters, lr=1e-6)


def stock_step(
    cfg: CfgNode, model: nn.Module, data: Iterator, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer(model, data, optimizer)
    return AMPTrainer(model, data, optimizer)  # of Detectron2 0.6: float16, no other

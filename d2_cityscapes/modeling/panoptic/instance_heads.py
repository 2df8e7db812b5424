"""RPN head and ROI heads of the Seamless model: norms and leaky ReLUs.

Shape letters: R RoIs (regions) of all images together, C channels, K thing classes, S the side of a
region in cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import Instances
from torch import Tensor, nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.layers.mini_dl import init_layer
from d2_cityscapes.modeling.box_head import GIoUROIHeads
from d2_cityscapes.modeling.execution.mask_loss import mask_rcnn_loss
from d2_cityscapes.modeling.execution.wait_free.counted import select_foreground
from d2_cityscapes.modeling.panoptic.layers import (
    NormConvTranspose2d,
    NormLinear,
    norm_and_activate,
)

__all__ = ["SeamlessBoxHead", "SeamlessMaskHead", "SeamlessROIHeads", "SeamlessRPNHead"]

# Gains of the layers that predict: they begin near 0.
_GAIN = 0.01
_BOX_GAIN = 0.001


@RPN_HEAD_REGISTRY.register()
class SeamlessRPNHead(StandardRPNHead):
    """Detectron2's RPN head with MODEL.RPN.NORM and a leaky ReLU behind its 3x3 convolution."""

    @configurable
    def __init__(self, *, norm: str = "", **kwargs: Any) -> None:
        """
        Args:
            norm: as in `detectron2.layers.get_norm`; all levels share it.
            kwargs: the arguments of `StandardRPNHead`.
        """
        super().__init__(**kwargs)
        for layer in list(self.conv.modules()):  # one convolution, or several in sequence
            if isinstance(layer, Conv2d):
                norm_and_activate(layer, norm)
        init_layer(self.objectness_logits, _GAIN)
        init_layer(self.anchor_deltas, _GAIN)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), "norm": cfg.MODEL.RPN.NORM}


@ROI_BOX_HEAD_REGISTRY.register()
class SeamlessBoxHead(nn.Sequential):
    """2x2 average pooling, then fully connected layers, each with norm and leaky ReLU.

    The regions are pooled at twice the side that the layers see, so that boxes and masks have the
    same: MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 14.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, fc_dims: Sequence[int], norm: str = ""):
        """
        Args:
            input_shape: channels, height and width of the regions.
            fc_dims: widths of the layers.
            norm: as in `detectron2.layers.get_norm`.
        """
        super().__init__()
        self.add_module("pool", nn.AvgPool2d(2))
        self.add_module("flatten", nn.Flatten())
        width = input_shape.channels * (input_shape.height // 2) * (input_shape.width // 2)
        for k, fc_dim in enumerate(fc_dims, start=1):
            self.add_module(f"fc{k}", NormLinear(width, fc_dim, norm))
            width = fc_dim
        self.output_shape = ShapeSpec(channels=width)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        if head.NUM_CONV > 0 or head.NUM_FC < 1:
            raise D2CityscapesError(
                f"MODEL.ROI_BOX_HEAD has NUM_CONV {head.NUM_CONV} and NUM_FC {head.NUM_FC}; "
                "SeamlessBoxHead has no convolutions, but fully connected layers"
            )
        return {
            "input_shape": input_shape,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "norm": head.NORM,
        }


@ROI_MASK_HEAD_REGISTRY.register()
class SeamlessMaskHead(MaskRCNNConvUpsampleHead):
    """Detectron2's mask head with norm and leaky ReLU behind each layer but the last.

    In training it takes RoIs of background too: they have no loss, but they are in the statistics
    of batch norm, which thereby never sees an empty batch.
    """

    deconv: nn.ConvTranspose2d

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, background: int, conv_norm: str = "", **kwargs: Any
    ) -> None:
        """
        Args:
            input_shape: of the region features.
            background: class of RoIs without object.
            conv_norm: as in `detectron2.layers.get_norm`.
            kwargs: the other arguments of `MaskRCNNConvUpsampleHead`.
        """
        super().__init__(input_shape, **kwargs)
        self.background = background
        for conv in self.conv_norm_relus:
            norm_and_activate(conv, conv_norm)
        deconv = self.deconv
        self.deconv = NormConvTranspose2d(deconv.in_channels, deconv.out_channels, conv_norm)
        del self.deconv_relu  # it is in `deconv`
        init_layer(self.predictor, _GAIN)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "background": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        }

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, else `instances` with "pred_masks" (R, 1, 2 S, 2 S) probabilities.

        Args:
            x: (R, C, S, S) features.
            instances: those R RoIs by image; in training with "gt_classes", "proposal_boxes" and,
                where there is foreground, "gt_masks"; else with "pred_classes".
        """
        if not self.training:
            return super().forward(x, instances)
        *hidden, predictor = self
        for layer in hidden:
            x = layer(x)
        instances, chosen = select_foreground(instances, self.background)
        loss = mask_rcnn_loss(predictor(x[chosen]), instances, self.vis_period)
        return {"loss_mask": loss * self.loss_weight}


@ROI_HEADS_REGISTRY.register()
class SeamlessROIHeads(GIoUROIHeads):
    """`GIoUROIHeads` for `SeamlessMaskHead`, which it gives all RoIs in training.

    With MODEL.ROI_BOX_HEAD.GIOU_WEIGHT 0 the losses are Detectron2's.
    """

    @configurable
    def __init__(self, **kwargs: Any):
        """
        Args:
            kwargs: the arguments of `GIoUROIHeads`.
        """
        super().__init__(**kwargs)
        if self.mask_on and not isinstance(self.mask_head, SeamlessMaskHead):
            raise D2CityscapesError(
                f"MODEL.ROI_MASK_HEAD.NAME is {type(self.mask_head).__name__}; SeamlessROIHeads "
                "needs SeamlessMaskHead, and GIoUROIHeads takes any"
            )

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        init_layer(parts["box_predictor"].cls_score, _GAIN)
        init_layer(parts["box_predictor"].bbox_pred, _BOX_GAIN)
        return parts

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if not (self.mask_on and self.training):
            return super()._forward_mask(features, instances)
        regions = self.mask_pooler(
            [features[name] for name in self.mask_in_features],
            [i.proposal_boxes for i in instances],
        )
        return self.mask_head(regions, instances)

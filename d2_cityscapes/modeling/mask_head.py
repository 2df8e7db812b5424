"""Two mask heads that the Mask R-CNN paper compares its own with: softmax masks, and an MLP.

Shape letters: R regions (RoIs of all images together), C input channels, K thing classes (1 where
the mask is class-agnostic), S the side of a mask in cells.
"""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Linear, ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import Instances
from torch import Tensor, nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.layers.losses import map_cross_entropy
from d2_cityscapes.modeling.execution.deferred_scalars import put_scalar_later
from d2_cityscapes.modeling.execution.mask_loss import WaitFreeMaskLoss, mask_targets

__all__ = ["MLPMaskHead", "SoftmaxMaskRCNNHead"]


@ROI_MASK_HEAD_REGISTRY.register()
class SoftmaxMaskRCNNHead(MaskRCNNConvUpsampleHead):
    """The stock mask head with classes that compete in each cell (He et al., table 2b).

    The stock head asks "is this cell part of the object?" once for each class, by K independent
    sigmoids. This one asks "which class is this cell?", by a softmax over K + 1 logits, the last of
    them background. A cell of a region matched to class k is k inside of the truth mask and
    background outside; the loss is the mean cross-entropy over all cells of all regions. Predicted
    masks hold the probability of the predicted class, which pasting thresholds as usual.

    Only its predictor has other shapes than the stock head's, K + 1 channels for K.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, num_classes: int, **kwargs: Any) -> None:
        """
        Args:
            input_shape: of the region features.
            num_classes: K, without background; 1 for class-agnostic masks.
            kwargs: the other arguments of `MaskRCNNConvUpsampleHead`.
        """
        super().__init__(input_shape, num_classes=num_classes + 1, **kwargs)
        self.num_classes = num_classes

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, else `instances` with "pred_masks" (R, 1, S, S) probabilities.

        Args:
            x: (R, C, S / 2, S / 2) features.
            instances: those R regions by image; in training foreground only, with "gt_classes",
                "gt_masks" and "proposal_boxes", else with "pred_classes".
        """
        logits = self.layers(x).float()
        if self.training:
            return {"loss_mask": self._loss(logits, instances) * self.loss_weight}
        chosen = self._channels([i.pred_classes for i in instances])
        masks = _of_channel(logits.softmax(dim=1), chosen)[:, None]
        for found, own in zip(instances, masks.split([len(i) for i in instances]), strict=True):
            found.pred_masks = own
        return instances

    def _loss(self, logits: Tensor, instances: list[Instances]) -> Tensor:
        instances = [i for i in instances if len(i) > 0]
        if not instances:
            return logits.sum() * 0
        side = logits.shape[-1]
        masks = mask_targets(instances, side, logits.device)
        channels = self._channels([i.gt_classes for i in instances])
        background = self.num_classes
        target = torch.where(masks, channels[:, None, None], background)
        with torch.no_grad():
            inside = _of_channel(logits.softmax(dim=1), channels) > 0.5
            put_scalar_later("mask_rcnn/accuracy", (inside == masks).float().mean())
        return map_cross_entropy(logits, target)

    def _channels(self, classes: list[Tensor]) -> Tensor:
        """(R,) the channel of each region's class; all of them share channel 0 where K is 1."""
        channels = torch.cat(classes)
        return channels if self.num_classes > 1 else torch.zeros_like(channels)


def _of_channel(maps: Tensor, channels: Tensor) -> Tensor:
    """(R, S, S): one channel of each of the (R, K + 1, S, S) maps."""
    return maps[torch.arange(len(maps), device=maps.device), channels]


@ROI_MASK_HEAD_REGISTRY.register()
class MLPMaskHead(WaitFreeMaskLoss):
    """Masks by fully connected layers (He et al., table 2e: 1024, 1024, K * 28 * 28).

    Losses and inference are the stock head's: a sigmoid for each class. Masks have twice the side
    of the region features, as those of the stock head.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_classes: int, fc_dims: list[int], **kwargs: Any
    ) -> None:
        """
        Args:
            input_shape: channels, height and width of the region features; they are square.
            num_classes: K; 1 for class-agnostic masks.
            fc_dims: widths of the hidden layers.
            kwargs: the arguments of `BaseMaskRCNNHead`.
        """
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.side = 2 * input_shape.height
        width = input_shape.channels * input_shape.height * input_shape.width
        hidden: list[nn.Module] = []
        for fc_dim in fc_dims:
            layer = Linear(width, fc_dim)
            weight_init.c2_xavier_fill(layer)
            hidden += [layer, nn.ReLU()]
            width = fc_dim
        self.hidden = nn.Sequential(*hidden)
        self.predictor = Linear(width, num_classes * self.side**2)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        if cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads":  # it halves the features after pooling
            raise D2CityscapesError(
                "MODEL.ROI_MASK_HEAD.NAME MLPMaskHead needs region features of a fixed size, which "
                "MODEL.ROI_HEADS.NAME Res5ROIHeads does not state: use StandardROIHeads"
            )
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "fc_dims": [head.FC_DIM] * head.NUM_CONV,
        }

    def layers(self, x: Tensor) -> Tensor:
        """(R, C, S / 2, S / 2) features to (R, K, S, S) logits."""
        logits = self.predictor(self.hidden(x.flatten(start_dim=1)))
        return logits.view(len(x), self.num_classes, self.side, self.side)

"""Semantic head with a MiniDL on each FPN level.

Shape letters: N images, C classes, H W pixels of the padded batch, h w cells of the finest level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.layers.losses import mean_of_hardest, upsampled_cross_entropy
from d2_cityscapes.layers.mini_dl import MiniDL, init_layer

__all__ = ["MiniDLSemSegHead"]


@SEM_SEG_HEADS_REGISTRY.register()
class MiniDLSemSegHead(nn.Module):
    """Semantic head of Porzi et al., "Seamless Scene Segmentation", CVPR 2019.

    Each level has a `MiniDL` of its own; their outputs, resized to the finest level, are classified
    together by one 1x1 convolution. The loss is that of the hardest pixels of each image. It takes
    the place of Detectron2's `SemSegFPNHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int = 128,
        pool_size: Sequence[int] = (64, 64),
        dilation: int = 6,
        norm: str | Callable[[int], nn.Module | None] = "BN",
        loss_weight: float = 1.0,
        loss_top_k: float = 0.25,
        ignore_value: int = 255,
    ) -> None:
        """
        Args:
            input_shape: channels and stride of each feature.
            num_classes: C.
            channels: of each MiniDL.
            pool_size: (height, width) of its window, in cells of every level.
            dilation: of its second branch.
            norm: in it, see `MiniDL`.
            loss_weight: factor of the loss.
            loss_top_k: part of the pixels of each image that the loss counts.
            ignore_value: void in the targets.
        """
        super().__init__()
        by_stride = sorted(input_shape.items(), key=lambda item: item[1].stride)
        self.levels = nn.ModuleDict(
            {
                name: MiniDL(shape.channels, channels, pool_size, dilation, norm)
                for name, shape in by_stride
            }
        )
        self.predictor = nn.Conv2d(len(by_stride) * channels, num_classes, 1)
        init_layer(self.predictor, gain=0.1)
        self.stride = by_stride[0][1].stride
        self.loss_weight = loss_weight
        self.loss_top_k = loss_top_k
        self.ignore_value = ignore_value

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        used = {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES}
        _check(head, used)
        return {
            "input_shape": used,
            "num_classes": head.NUM_CLASSES,
            "channels": head.CONVS_DIM,
            "pool_size": head.POOL_SIZE,
            "norm": partial(get_norm, head.NORM),
            "loss_weight": head.LOSS_WEIGHT,
            "loss_top_k": head.LOSS_TOP_K,
            "ignore_value": head.IGNORE_VALUE,
        }

    def forward(
        self,
        features: Mapping[str, Tensor],
        targets: Tensor | Sequence[Tensor] | None = None,
        weights: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Train or predict.

        Args:
            features: (N, channels, ., .) of each level.
            targets: in training, (N, H, W) integer classes, `ignore_value` where void; or a map of
                its own size for each image, so that padding is not counted as void.
            weights: in training, factors of the pixels of each image: maps of the same sizes.

        Returns:
            In training None and {"loss_sem_seg"}; else (N, C, H, W) float32 logits and {}.
        """
        logits = self.layers(features)
        if self.training:
            if targets is None:
                raise ValueError("in training MiniDLSemSegHead needs targets")
            return None, self.losses(logits, targets, weights)
        logits = F.interpolate(
            logits.float(), scale_factor=self.stride, mode="bilinear", align_corners=False
        )
        return logits, {}

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """(N, C, h, w) logits.

        The convolution that classifies and the resizing can change places: each level is classified
        first, so that C channels are resized in place of those of a MiniDL.
        """
        finest, *coarser = [own(features[name]) for name, own in self.levels.items()]
        weights = self.predictor.weight.split(finest.shape[1], dim=1)
        logits = F.conv2d(finest, weights[0], self.predictor.bias)
        for x, weight in zip(coarser, weights[1:], strict=True):
            logits = logits + F.interpolate(
                F.conv2d(x, weight), size=logits.shape[2:], mode="bilinear", align_corners=False
            )
        return logits

    def losses(
        self,
        logits: Tensor,
        targets: Tensor | Sequence[Tensor],
        weights: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The loss from (N, C, h, w) logits; targets and weights as in `forward`.

        What is hard is said by the weighted losses.
        """
        maps = [
            upsampled_cross_entropy(own, target, self.stride, self.ignore_value)
            for own, target in zip(logits, targets, strict=True)
        ]
        if weights is not None:
            maps = [own * weight for own, weight in zip(maps, weights, strict=True)]
        images = [mean_of_hardest(own[None], self.loss_top_k) for own in maps]
        return {"loss_sem_seg": torch.stack(images).mean() * self.loss_weight}


def _check(head: CfgNode, used: Mapping[str, ShapeSpec]) -> None:
    """Refuse a config that the head would read otherwise than it says."""
    if missing := sorted(set(head.IN_FEATURES) - set(used)):
        raise D2CityscapesError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES has {missing}, which the backbone does not give"
        )
    finest = min(shape.stride for shape in used.values())
    if finest != head.COMMON_STRIDE:
        raise D2CityscapesError(
            f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {head.COMMON_STRIDE}, but MiniDLSemSegHead works "
            f"at the stride of the finest of IN_FEATURES: set it to {finest}"
        )
    if len(head.POOL_SIZE) != 2 or min(head.POOL_SIZE) < 1:
        raise D2CityscapesError(
            f"MODEL.SEM_SEG_HEAD.POOL_SIZE is {head.POOL_SIZE}; expected [height, width] in cells"
        )
    if not 0 < head.LOSS_TOP_K <= 1:
        raise D2CityscapesError(
            f"MODEL.SEM_SEG_HEAD.LOSS_TOP_K is {head.LOSS_TOP_K}; expected a part of the pixels "
            "above 0, up to 1"
        )

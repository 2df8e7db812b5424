"""torchvision's DeepLabv3 as a Detectron2 model, or with a network of timm below its heads.

Shape letters: N images of a batch, h, w pixels of the network's input, H, W pixels of the wanted
output; K channels of the heads, of which the first C are the classes, 19 of Cityscapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from d2_cityscapes.data.register import label_table_of
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.layers.losses import map_cross_entropy
from d2_cityscapes.layers.recomputed import recomputed
from d2_cityscapes.modeling.backbones.build import build_timm_encoder
from d2_cityscapes.modeling.backbones.weights import uses_timm
from d2_cityscapes.modeling.freezing.guard import KeepsFrozen
from d2_cityscapes.modeling.options import nothing, put_into_force
from d2_cityscapes.modeling.small_instances import are_weighted

__all__ = ["DeepLabV3Segmentor"]

_NETWORKS = {50: deeplabv3_resnet50, 101: deeplabv3_resnet101}
_PARTS = ("backbone", "classifier", "aux_classifier")
_AUX = "aux_classifier."
# Output stride -> rates of the head's dilated convolutions (Chen et al., "Rethinking Atrous
# Convolution for Semantic Image Segmentation", 2017, section 4.1: twice those of 16 at 8).
_RATES = {8: (12, 24, 36), 16: (6, 12, 18)}


@META_ARCH_REGISTRY.register()
class DeepLabV3Segmentor(KeepsFrozen, nn.Module):
    """torchvision's ``deeplabv3_resnet50`` (or 101) with Detectron2's inputs and outputs.

    The parts keep torchvision's names, so that its state dict loads as it is; with another number
    of channels than its 21, only the last layers of the two heads (``classifier.4`` and
    ``aux_classifier.4``) differ. With MODEL.BACKBONE.NAME "build_timm_fpn_backbone" the network of
    MODEL.TIMM stands in place of the ResNet, without its FPN.

    Void pixels are left out of the loss, or trained as one more class. Predictions are scores of
    the classes of the configured datasets alone in both cases.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        classifier: nn.Module,
        aux_classifier: nn.Module,
        pixel_mean: list[float],
        pixel_std: list[float],
        ignore_value: int = 255,
        void_class: int = -1,
        loss_weight: float = 1.0,
        aux_loss_weight: float = 0.0,
        num_classes: int = len(CITYSCAPES.classes),
        complete: Callable[[nn.Module], None] = nothing,
    ) -> None:
        """
        Args:
            backbone: (N, 3, h, w) to the features {"out": of the last layer, "aux": of the one
                before}.
            classifier: features "out" to (N, K, ., .) logits.
            aux_classifier: features "aux" to (N, K, ., .) logits.
            pixel_mean: per channel, in the channel order of the input.
            pixel_std: the same.
            ignore_value: void in "sem_seg".
            void_class: the channel that void trains, or -1 to leave void out of the loss.
            loss_weight: factor of both losses (MODEL.SEM_SEG_HEAD.LOSS_WEIGHT).
            aux_loss_weight: factor of the auxiliary loss; at 0 the auxiliary head does not train.
            num_classes: C.
            complete: called with the model when it has all its parts.
        """
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.ignore_value = ignore_value
        self.void_class = void_class
        self.loss_weight = loss_weight
        self.aux_loss_weight = aux_loss_weight
        self.num_classes = num_classes
        if aux_loss_weight == 0:
            # Its gradients stay None, so that no optimizer moves it; data-parallel training, which
            # would wait for them, has to know. It is not frozen: that would ask for its weights.
            resting = [name for name, _ in self.named_parameters() if name.startswith(_AUX)]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, resting)
        complete(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """It takes MODEL.RESNETS.DEPTH and NORM, or MODEL.TIMM; FREEZE_AT acts on neither."""
        head = cfg.MODEL.SEM_SEG_HEAD
        classes = len(label_table_of(cfg.DATASETS.TRAIN or cfg.DATASETS.TEST).classes)
        _check_classes(head.NUM_CLASSES, head.VOID_CLASS, classes)
        if uses_timm(cfg):
            parts = dict(_timm_parts(cfg, head.NUM_CLASSES))
        else:
            network = _network(cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM, head.NUM_CLASSES)
            parts = {name: network.get_submodule(name) for name in _PARTS}
        return {
            **parts,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "ignore_value": head.IGNORE_VALUE,
            "void_class": head.VOID_CLASS,
            "loss_weight": head.LOSS_WEIGHT,
            "aux_loss_weight": cfg.MODEL.DEEPLAB.AUX_LOSS_WEIGHT,
            "num_classes": classes,
            "complete": partial(put_into_force, cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Train or predict.

        Args:
            batched_inputs: "image" (3, h, w); in training "sem_seg" (h, w) int64 train ids; else
                "height" and "width" of the wanted output, by default those of the image.

        Returns:
            In training {"loss_sem_seg"}, and "loss_sem_seg_aux" where it has a weight; else for
            each image {"sem_seg": (C, H, W) scores}.
        """
        images = [x["image"].to(self.device) for x in batched_inputs]
        batch = self._padded([(x - self.pixel_mean) / self.pixel_std for x in images], 0.0)
        if self.training:
            weights = None
            if are_weighted(batched_inputs):
                maps = [x["sem_seg_weights"].to(self.device) for x in batched_inputs]
                weights = self._padded(maps, 1.0).tensor
            logits = self._coarse_logits(batch.tensor)
            return self._losses(logits, self._targets(batched_inputs), weights)
        logits = self.logits(batch.tensor)
        return [
            {
                "sem_seg": sem_seg_postprocess(
                    own[: self.num_classes], (h, w), *_wanted_size(inputs, h, w)
                )
            }
            for own, inputs, (h, w) in zip(
                logits["out"], batched_inputs, batch.image_sizes, strict=True
            )
        ]

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """(N, K, h, w) float32 "out", and in training "aux" where its loss has a weight.

        Args:
            images: (N, 3, h, w), normalised.
        """
        size = (images.shape[-2], images.shape[-1])
        return {name: _upsampled(x, size) for name, x in self._coarse_logits(images).items()}

    def _coarse_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The same, in the cells that the heads see."""
        features = self.backbone(images)
        found = {"out": _classify(self.classifier, features["out"])}
        if self.training and self.aux_loss_weight > 0:
            found["aux"] = _classify(self.aux_classifier, features["aux"])
        return found

    def _targets(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        """(N, h, w) channels to train; padding of a smaller image is never void, but ignored."""
        maps = [x["sem_seg"].to(self.device) for x in batched_inputs]
        if self.void_class >= 0:
            maps = [x.masked_fill(x == self.ignore_value, self.void_class) for x in maps]
        return self._padded(maps, self.ignore_value).tensor

    def _padded(self, images: list[Tensor], value: float) -> ImageList:
        """All of the largest size, and of what INPUT.SIZE_DIVISIBILITY makes of it."""
        return ImageList.from_tensors(images, getattr(self.backbone, "size_divisibility", 0), value)

    def _losses(
        self, logits: dict[str, Tensor], targets: Tensor, pixel_weights: Tensor | None
    ) -> dict[str, Tensor]:
        weights = {"out": self.loss_weight, "aux": self.loss_weight * self.aux_loss_weight}
        names = {"out": "loss_sem_seg", "aux": "loss_sem_seg_aux"}
        return {
            names[head]: weights[head]
            * _cross_entropy(own, targets, self.ignore_value, pixel_weights)
            for head, own in logits.items()
        }


def _network(depth: int, norm: str, channels: int) -> nn.Module:
    """torchvision's network with random weights."""
    if depth not in _NETWORKS:
        raise D2CityscapesError(
            f"MODEL.RESNETS.DEPTH is {depth}; DeepLabV3Segmentor has 50 and 101, as the blocks of "
            "smaller ResNets have no dilation"
        )
    network = _NETWORKS[depth](
        weights=None, weights_backbone=None, num_classes=channels, aux_loss=True
    )
    if norm == "BN":
        return network
    if norm == "SyncBN":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if norm == "FrozenBN":  # of the ResNet, as the key says: the heads always learn their own
        FrozenBatchNorm2d.convert_frozen_batchnorm(network.backbone)
        return network
    raise D2CityscapesError(
        f"MODEL.RESNETS.NORM is {norm!r}; DeepLabV3Segmentor has BN, FrozenBN and SyncBN"
    )


def _timm_parts(cfg: CfgNode, channels: int) -> Iterator[tuple[str, nn.Module]]:
    """A network of timm, and torchvision's heads for it."""
    encoder = build_timm_encoder(cfg)
    of_aux, of_out = encoder.channels()
    yield "backbone", encoder
    heads = {
        "classifier": DeepLabHead(of_out, channels, _RATES[cfg.MODEL.TIMM.OUTPUT_STRIDE]),
        "aux_classifier": FCNHead(of_aux, channels),
    }
    for name, head in heads.items():
        synced = cfg.MODEL.TIMM.NORM == "SyncBN"
        yield name, nn.SyncBatchNorm.convert_sync_batchnorm(head) if synced else head


def _classify(head: nn.Module, features: Tensor) -> Tensor:
    """What the head gives, or one clear error for a single image.

    DeepLab pools the whole image into one value a channel, which batch norm cannot normalise alone.
    """
    try:
        return head(features)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise D2CityscapesError(
            "DeepLabV3Segmentor trains on two or more images at a time, for the batch norm after "
            "its image pooling: raise SOLVER.IMS_PER_BATCH to twice the number of GPUs, or set "
            "MODEL.RESNETS.NORM SyncBN on several GPUs"
        ) from error


def _upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, K, *size), in float32 as the loss is, whatever the layers before compute in."""
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def _cross_entropy(
    logits: Tensor, targets: Tensor, ignore_value: int, weights: Tensor | None = None
) -> Tensor:
    """Mean over the pixels that count; of none 0, with a gradient of zeros, where PyTorch has nan.

    One image at a time is upsampled, and again in the backward pass: in float32 19 classes of
    1024 x 2048 pixels are 152 MiB, of which a batch would keep two maps an image.

    Args:
        logits: (N, K, ., .), upsampled to the targets here.
        targets: (N, h, w) channels, or `ignore_value`.
        ignore_value: pixels that do not count.
        weights: (N, h, w) factors of the pixels; they do not change how many count.
    """

    def total(own: Tensor, target: Tensor, *weight: Tensor) -> Tensor:
        upsampled = _upsampled(own[None], (target.shape[0], target.shape[1]))
        return map_cross_entropy(
            upsampled,
            target[None],
            ignore_value=ignore_value,
            reduction="sum",
            weights=weight[0][None] if weight else None,
        )

    counted = (targets != ignore_value).sum()
    maps = (logits, targets) if weights is None else (logits, targets, weights)
    sums = [recomputed(total, *image) for image in zip(*maps, strict=True)]
    return torch.stack(sums).sum() / counted.clamp(min=1)


def _wanted_size(inputs: dict[str, Any], h: int, w: int) -> tuple[int, int]:
    return inputs.get("height", h), inputs.get("width", w)


def _check_classes(channels: int, void_class: int, classes: int) -> None:
    """Refuse a config whose targets have no channel."""
    if channels < classes:
        raise D2CityscapesError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {channels}; DeepLabV3Segmentor needs at least the "
            f"{classes} classes of the datasets"
        )
    if void_class != -1 and not void_class == classes < channels:
        raise D2CityscapesError(
            f"MODEL.SEM_SEG_HEAD.VOID_CLASS is {void_class} with NUM_CLASSES {channels}: void is "
            f"class {classes} of {classes + 1}, or -1 to leave it out of the loss"
        )

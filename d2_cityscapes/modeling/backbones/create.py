"""A network of timm as a config has it: created, with its weights where it begins with them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.backbones.weights import (
    TimmWeights,
    begins_with_timm,
    import_timm,
    log_licence,
    read_weights,
)

__all__ = ["create_network"]

# What lets a network take pictures of any size: windowed ones, plain ViTs, and all others. Without
# always_partition, Swin leaves out the shift of its windows where a map of the weights' picture is
# one window.
_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False, "always_partition": True},
    {"dynamic_img_size": True},
    {},
)


def create_network(cfg: CfgNode, weights: TimmWeights, **options: Any) -> Any:
    """timm's network without its classifier, for pictures of any size."""
    timm, own = import_timm(), cfg.MODEL.TIMM
    loads, file = begins_with_timm(cfg), own.FILE
    if not 0 <= own.DROP_PATH < 1:
        raise D2CityscapesError(
            f"MODEL.TIMM.DROP_PATH {own.DROP_PATH}: use a number from 0, below 1"
        )
    options["drop_path_rate"] = own.DROP_PATH
    tensors = read_weights(file, weights) if loads and file else None
    if tensors:
        options["pretrained_cfg_overlay"] = {"state_dict": tensors}
    elif loads and not weights.place:
        raise D2CityscapesError(f"MODEL.TIMM.PRETRAINED: timm has no weights of {weights.name}")
    any_size = list(_ANY_SIZE)
    while True:
        try:
            net = timm.create_model(
                own.NAME, pretrained=loads, num_classes=0, **any_size[0], **options
            )
            break
        except Exception as error:
            refused = _refused(error)
            if refused.intersection(any_size[0]):
                del any_size[0]
            elif "drop_path_rate" in refused and own.DROP_PATH == 0:
                del options["drop_path_rate"]
            else:
                raise _explained(error, refused, cfg, weights) from error
    if tensors:
        _check_all_there(net, tensors, file, weights.name)
    if loads:
        log_licence(weights, file)
    return net


def _refused(error: Exception) -> set[str]:
    """The arguments that a constructor does not know, if that is what it says."""
    _, found, names = str(error).partition("unexpected keyword argument")
    return set(re.findall(r"'(\w+)'", names)) if isinstance(error, TypeError) and found else set()


def _explained(
    error: Exception, refused: Collection[str], cfg: CfgNode, weights: TimmWeights
) -> D2CityscapesError:
    """One line for what timm raised."""
    own, reason = cfg.MODEL.TIMM, " ".join(str(error).split())[:200] or type(error).__name__
    if "drop_path_rate" in refused:
        return D2CityscapesError(
            f"MODEL.TIMM.DROP_PATH {own.DROP_PATH}: {own.NAME} has no stochastic depth: set it to 0"
        )
    if "output_stride" in refused:
        return D2CityscapesError(
            f"MODEL.TIMM.OUTPUT_STRIDE: {own.NAME} has its own strides alone: use a convolutional "
            "network, such as a ResNet or ConvNeXt, for DeepLabV3Segmentor"
        )
    if begins_with_timm(cfg) and own.FILE:
        return D2CityscapesError(
            f"MODEL.TIMM.FILE {own.FILE}: no weights of {weights.name} ({reason})"
        )
    if begins_with_timm(cfg):
        return D2CityscapesError(
            f"MODEL.TIMM.PRETRAINED: weights of {weights.name} cannot be had from {weights.place} "
            f"({reason}); without a network, download them elsewhere and name the file or folder "
            "in MODEL.TIMM.FILE"
        )
    return D2CityscapesError(f"MODEL.TIMM.NAME {own.NAME}: cannot be built so ({reason})")


def _check_all_there(net: nn.Module, tensors: Mapping[str, Tensor], file: str, name: str) -> None:
    """timm would leave random what a file lacks."""
    statistics = (key for key, _ in net.named_buffers() if ".running_" in key)
    needed = itertools.chain((key for key, _ in net.named_parameters()), statistics)
    lacking = [key for key in needed if key not in tensors]
    if lacking:
        raise D2CityscapesError(
            f"MODEL.TIMM.FILE {file}: lacks {len(lacking)} tensors of {name}, e.g. {lacking[0]}; "
            "it takes files in the names of timm"
        )

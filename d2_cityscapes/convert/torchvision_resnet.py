"""A ResNet in torchvision's names, alone or inside a DeepLabv3, as the body of a Detectron2 FPN."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from d2_cityscapes.convert.files import (
    STEPS,
    Conversion,
    convert_weights,
    counted,
    mismatch,
)
from d2_cityscapes.convert.kinds import ConversionError

__all__ = ["convert_torchvision_file", "detectron2_name", "torchvision_to_detectron2"]

BODY = "backbone.bottom_up."  # of every FPN of Detectron2
FIRST_BLOCK = "layer1.0.conv1.weight"

# (blocks of the third layer, with bottlenecks) -> depth
DEPTHS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101, (36, True): 152}

_STEM = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}
_LAYER = {
    "conv1": "conv1",
    "bn1": "conv1.norm",
    "conv2": "conv2",
    "bn2": "conv2.norm",
    "conv3": "conv3",
    "bn3": "conv3.norm",
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}


def convert_torchvision_file(input: Path, output: Path) -> tuple[str, ...]:
    """See `torchvision_to_detectron2` and `d2_cityscapes.convert.convert_file`."""
    return convert_weights(torchvision_to_detectron2, input, output)


def torchvision_to_detectron2(weights: Mapping[str, Tensor]) -> Conversion:
    """Rename the ResNet in torchvision's weights to the body of Detectron2's ResNet FPN.

    The features are torchvision's if the config has MODEL.RESNETS.STRIDE_IN_1X1 False, INPUT.FORMAT
    RGB, and torchvision's pixel mean and standard deviation.

    Args:
        weights: those of a plain ResNet of any depth, or of a model around one, such as
            ``deeplabv3_resnet50``. Heads are left behind, and so are the step counters of batch
            norm.

    Raises:
        ConversionError: no ResNet in it, or one with missing, additional or differently shaped
            tensors.
    """
    prefix = _find_prefix(weights)
    inside = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    depth = _depth(inside)
    expected = _resnet_shapes(depth)
    shapes = {name: tuple(tensor.shape) for name, tensor in inside.items() if _is_body(name)}
    problems = [
        *(f"missing: {prefix}{name}" for name in expected.keys() - shapes.keys()),
        *(f"not in ResNet-{depth}: {prefix}{name}" for name in shapes.keys() - expected.keys()),
        *(
            f"another shape: {prefix}{name} is {shapes[name]}, in ResNet-{depth} {expected[name]}"
            for name in shapes.keys() & expected.keys()
            if shapes[name] != expected[name]
        ),
    ]
    if problems:
        raise mismatch(f"not torchvision's ResNet-{depth}", sorted(problems))
    tensors = {BODY + detectron2_name(name): inside[name] for name in expected}
    convolutions = sum(tensor.ndim == 4 for tensor in tensors.values())
    left = Counter(
        STEPS if name.endswith(STEPS) else name.removeprefix(prefix).split(".")[0]
        for name in weights
        if name.removeprefix(prefix) not in expected or not name.startswith(prefix)
    )
    return Conversion(
        tensors,
        (
            f"converted {len(tensors)} of {counted(len(weights), 'tensor')}: ResNet-{depth}, "
            f"{convolutions} convolutions with their norms",
            "left behind: "
            + (", ".join(f"{name} ({n})" for name, n in sorted(left.items())) or "nothing"),
        ),
    )


def detectron2_name(name: str) -> str:
    """The name below `BODY`: "layer2.0.downsample.1.bias" is "res3.0.shortcut.norm.bias"."""
    module, _, tensor = name.rpartition(".")
    if module in _STEM:
        return f"{_STEM[module]}.{tensor}"
    layer, block, part = module.split(".", 2)
    return f"res{int(layer.removeprefix('layer')) + 1}.{block}.{_LAYER[part]}.{tensor}"


def _find_prefix(weights: Mapping[str, Tensor]) -> str:
    """What stands before the names of the ResNet: "" or e.g. "backbone."."""
    ends = [n for n in weights if n == FIRST_BLOCK or n.endswith(f".{FIRST_BLOCK}")]
    if len(ends) == 1:
        return ends[0].removesuffix(FIRST_BLOCK)
    if any(name.startswith(f"{BODY}res2.") for name in weights):
        raise ConversionError("these are Detectron2's names already: use it as MODEL.WEIGHTS")
    raise ConversionError(
        f"{len(ends)} ResNets in torchvision's names found (by {FIRST_BLOCK}); it takes exactly "
        "one, e.g. in deeplabv3_resnet50 or resnet50"
    )


def _depth(inside: Mapping[str, Tensor]) -> int:
    numbers = [int(m[1]) for m in map(re.compile(r"layer3\.(\d+)\.").match, inside) if m]
    blocks, bottlenecks = max(numbers, default=-1) + 1, "layer1.0.conv3.weight" in inside
    if (blocks, bottlenecks) not in DEPTHS:
        raise ConversionError(
            f"not a ResNet of torchvision: {blocks} blocks in layer3; the depths are "
            f"{', '.join(map(str, DEPTHS.values()))}"
        )
    return DEPTHS[blocks, bottlenecks]


def _resnet_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a ResNet but its classifier."""
    import torchvision

    with torch.device("meta"):  # shapes only
        model = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if _is_body(name)}


def _is_body(name: str) -> bool:
    return re.match(r"(conv1|bn1|layer\d)\.", name) is not None and not name.endswith(STEPS)

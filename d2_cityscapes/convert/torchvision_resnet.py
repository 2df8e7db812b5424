"""A ResNet in torchvision's names, alone or inside of another network, as Detectron2's ResNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from d2_cityscapes.convert.renaming import left_behind

__all__ = [
    "BODY",
    "ResNetBody",
    "convert_torchvision_file",
    "detectron2_name",
    "find_body",
    "torchvision_to_detectron2",
]

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


@dataclass(frozen=True)
class ResNetBody:
    """A ResNet in a file.

    Attributes:
        prefix: what stands before its names there, "" or e.g. "backbone.".
        depth: 18, 34, 50, 101 or 152.
        groups: of the 3x3 convolutions of its bottlenecks, 32 or 64 in ResNeXt.
        width: channels of each group in the first layer, 64 in plain ones.
        names: name in the file -> ours, of every tensor.
    """

    prefix: str
    depth: int
    groups: int
    width: int
    names: Mapping[str, str]

    @property
    def keys(self) -> str:
        """What a config says of it, where that differs from a ResNet-50."""
        keys: dict[str, Any] = {}
        if self.depth != 50:
            keys["DEPTH"] = self.depth
        if self.depth < 50:
            keys["RES2_OUT_CHANNELS"] = 64
        if (self.groups, self.width) != (1, 64):
            keys |= {"NUM_GROUPS": self.groups, "WIDTH_PER_GROUP": self.width}
        return " ".join(f"MODEL.RESNETS.{key} {value}" for key, value in keys.items())

    def __str__(self) -> str:
        wide = self.groups == 1 and self.width != 64
        kind = f"Wide-ResNet-{self.depth}" if wide else f"ResNet-{self.depth}"
        return kind if self.groups == 1 else f"ResNeXt-{self.depth} {self.groups}x{self.width}d"


def convert_torchvision_file(
    input: Path, output: Path, *, details: bool = False
) -> tuple[str, ...]:
    """See `torchvision_to_detectron2` and `d2_cityscapes.convert.convert_file`."""
    return convert_weights(torchvision_to_detectron2, input, output, details=details)


def torchvision_to_detectron2(weights: Mapping[str, Tensor]) -> Conversion:
    """Rename the ResNet in torchvision's weights to the body of Detectron2's ResNet FPN.

    The features are torchvision's if the config has MODEL.RESNETS.STRIDE_IN_1X1 False, INPUT.FORMAT
    RGB, and torchvision's pixel mean and standard deviation.

    Args:
        weights: those of a ResNet, ResNeXt or Wide ResNet of any depth, or of a model around one,
            such as ``deeplabv3_resnet50``. Heads are left behind, and so are the step counters of
            batch norm.

    Raises:
        ConversionError: no ResNet in it, or one with missing, additional or differently shaped
            tensors.
    """
    body = find_body(weights)
    tensors = {ours: weights[theirs] for theirs, ours in body.names.items()}
    convolutions = sum(tensor.ndim == 4 for tensor in tensors.values())
    left = [name.removeprefix(body.prefix) for name in weights if name not in body.names]
    return Conversion(
        tensors,
        (
            f"converted {len(tensors)} of {counted(len(weights), 'tensor')}: {body}, "
            f"{convolutions} convolutions with their norms",
            left_behind(left),
            *([f"the config needs {body.keys}"] if body.keys else []),
        ),
        sources={ours: theirs for theirs, ours in body.names.items()},
    )


def find_body(weights: Mapping[str, Tensor]) -> ResNetBody:
    """The one ResNet in torchvision's names that is in the weights.

    Raises:
        ConversionError: none, several, or one with missing, additional or differently shaped
            tensors.
    """
    prefix = _find_prefix(weights)
    inside = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    shapes = {name: tuple(tensor.shape) for name, tensor in inside.items() if _is_body(name)}
    depth = _depth(shapes)
    groups, width = _groups(shapes)
    body = ResNetBody(prefix, depth, groups, width, {})
    expected = _resnet_shapes(body)
    problems = [
        *(f"missing: {prefix}{name}" for name in expected.keys() - shapes.keys()),
        *(f"not in {body}: {prefix}{name}" for name in shapes.keys() - expected.keys()),
        *(
            f"another shape: {prefix}{name} is {shapes[name]}, in {body} {expected[name]}"
            for name in shapes.keys() & expected.keys()
            if shapes[name] != expected[name]
        ),
    ]
    if problems:
        raise mismatch(f"not torchvision's {body}", sorted(problems))
    return replace(body, names={prefix + n: BODY + detectron2_name(n) for n in expected})


def detectron2_name(name: str) -> str:
    """The name below `BODY`: "layer2.0.downsample.1.bias" is "res3.0.shortcut.norm.bias"."""
    module, _, tensor = name.rpartition(".")
    if module in _STEM:
        return f"{_STEM[module]}.{tensor}"
    layer, block, part = module.split(".", 2)
    return f"res{int(layer.removeprefix('layer')) + 1}.{block}.{_LAYER[part]}.{tensor}"


def _find_prefix(weights: Mapping[str, Tensor]) -> str:
    ends = [n for n in weights if n == FIRST_BLOCK or n.endswith(f".{FIRST_BLOCK}")]
    if len(ends) == 1:
        return ends[0].removesuffix(FIRST_BLOCK)
    if any(name.startswith(f"{BODY}res2.") for name in weights):
        raise ConversionError("these are Detectron2's names already: use it as MODEL.WEIGHTS")
    raise ConversionError(
        f"{len(ends)} ResNets in torchvision's names found (by {FIRST_BLOCK}); it takes exactly "
        "one, e.g. in deeplabv3_resnet50 or resnet50"
    )


def _depth(shapes: Mapping[str, tuple[int, ...]]) -> int:
    numbers = [int(m[1]) for m in map(re.compile(r"layer3\.(\d+)\.").match, shapes) if m]
    blocks, bottlenecks = max(numbers, default=-1) + 1, "layer1.0.conv3.weight" in shapes
    if (blocks, bottlenecks) not in DEPTHS:
        raise ConversionError(
            f"not a ResNet of torchvision: {blocks} blocks in layer3; the depths are "
            f"{', '.join(map(str, DEPTHS.values()))}"
        )
    return DEPTHS[blocks, bottlenecks]


def _groups(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Groups of the 3x3 convolution of a bottleneck, and channels of each; (1, 64) of others."""
    rows, columns = shapes.get("layer1.0.conv2.weight", (64, 64))[:2]
    groups = max(1, rows // max(1, columns))
    return groups, max(1, rows // groups)


def _resnet_shapes(body: ResNetBody) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of such a ResNet but its classifier."""
    import torchvision

    keywords = {} if body.depth < 50 else {"groups": body.groups, "width_per_group": body.width}
    with torch.device("meta"):  # shapes only
        model = getattr(torchvision.models, f"resnet{body.depth}")(weights=None, **keywords)
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if _is_body(name)}


def _is_body(name: str) -> bool:
    return re.match(r"(conv1|bn1|layer\d)\.", name) is not None and not name.endswith(STEPS)

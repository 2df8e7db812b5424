"""The network of Seamless Scene Segmentation, written down with seamseg's names of its tensors.

The slow version that the converted model is held against: each layer says what it computes, with
boxes as (y, x) and background as class 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.01


class Abn(nn.Module):
    """In-place activated batch norm at test time."""

    def __init__(self, channels: int, *, activated: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels).uniform_(-1.2, 1.2))  # the sign is dropped
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-0.3, 0.3))
        self.register_buffer("running_mean", torch.empty(channels).uniform_(-0.2, 0.2))
        self.register_buffer("running_var", torch.empty(channels).uniform_(0.5, 1.5))
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.weight.abs() + 1e-5
        x = F.batch_norm(x, self.running_mean, self.running_var, gamma, self.bias, eps=1e-5)
        return F.leaky_relu(x, SLOPE) if self.activated else x


def conv(inputs: int, outputs: int, side: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, bias=False, **options)


class Block(nn.Module):
    def __init__(self, inputs: int, middle: int, stride: int):
        super().__init__()
        outputs = 4 * middle
        self.convs = nn.Sequential()
        for name, module in {
            "conv1": conv(inputs, middle, 1),
            "bn1": Abn(middle),
            "conv2": conv(middle, middle, 3, stride=stride, padding=1),
            "bn2": Abn(middle),
            "conv3": conv(middle, outputs, 1),
            "bn3": Abn(outputs, activated=False),
        }.items():
            self.convs.add_module(name, module)
        if stride != 1 or inputs != outputs:
            self.proj_conv = conv(inputs, outputs, 1, stride=stride)
            self.proj_bn = Abn(outputs, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.proj_bn(self.proj_conv(x)) if hasattr(self, "proj_conv") else x
        return F.leaky_relu(self.convs(x) + residual, SLOPE)


class Backbone(nn.Module):
    def __init__(self, blocks: Sequence[int], width: int):
        super().__init__()
        self.mod1 = nn.Sequential()
        self.mod1.add_module("conv1", conv(3, width, 7, stride=2, padding=3))
        self.mod1.add_module("bn1", Abn(width))
        self.mod1.add_module("pool1", nn.MaxPool2d(3, stride=2, padding=1))
        inputs = width
        for k, number in enumerate(blocks):
            stage = nn.Sequential()
            for i in range(number):
                stride = 2 if k > 0 and i == 0 else 1
                stage.add_module(f"block{i + 1}", Block(inputs, width << k, stride))
                inputs = 4 * width << k
            self.add_module(f"mod{k + 2}", stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.mod1(x)
        features = []
        for stage in (self.mod2, self.mod3, self.mod4, self.mod5):
            x = stage(x)
            features.append(x)
        return features


class Normed(nn.Module):
    def __init__(self, inputs: int, outputs: int, side: int, **options):
        super().__init__()
        self.conv = conv(inputs, outputs, side, **options)
        self.bn = Abn(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Fpn(nn.Module):
    def __init__(self, inputs: Sequence[int], channels: int, extra: int):
        super().__init__()
        self.lateral = nn.ModuleList([Normed(n, channels, 1) for n in inputs])
        self.output = nn.ModuleList([Normed(channels, channels, 3, padding=1) for _ in inputs])
        if extra:
            above = [inputs[-1], *[channels] * (extra - 1)]
            self.extra = nn.ModuleList([Normed(n, channels, 3, stride=2, padding=1) for n in above])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        lateral = [own(x) for own, x in zip(self.lateral, features, strict=True)]
        for k in (2, 1, 0):
            lateral[k] = lateral[k] + F.interpolate(lateral[k + 1], lateral[k].shape[2:])
        levels = [own(x) for own, x in zip(self.output, lateral, strict=True)]
        x = features[-1]
        for own in getattr(self, "extra", ()):
            x = own(x)
            levels.append(x)
        return levels


class Body(nn.Module):
    def __init__(self, blocks: Sequence[int], width: int, channels: int, extra: int):
        super().__init__()
        self.backbone = Backbone(blocks, width)
        self.fpn = Fpn([4 * width << k for k in range(4)], channels, extra)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.fpn(self.backbone(x))


class RpnHead(nn.Module):
    def __init__(self, channels: int, anchors: int):
        super().__init__()
        self.conv1 = conv(channels, channels, 3, padding=1)
        self.bn1 = Abn(channels)
        self.conv_obj = nn.Conv2d(channels, anchors, 1)
        self.conv_bbx = nn.Conv2d(channels, 4 * anchors, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, A, H, W) logits, (N, A, 4, H, W) deltas (dy, dx, dh, dw)."""
        x = self.bn1(self.conv1(x))
        return self.conv_obj(x), self.conv_bbx(x).unflatten(1, (-1, 4))


class RoiHead(nn.Module):
    def __init__(self, channels: int, hidden: int, things: int):
        super().__init__()
        self.fc, self.conv = nn.Sequential(), nn.Sequential()
        for k, inputs in enumerate([channels * 7 * 7, hidden], start=1):
            self.fc.add_module(f"fc{k}", nn.Linear(inputs, hidden, bias=False))
            self.fc.add_module(f"bn{k}", Abn(hidden))
        self.roi_cls = nn.Linear(hidden, things + 1)
        self.roi_bbx = nn.Linear(hidden, things * 4)
        for k in range(1, 5):
            self.conv.add_module(f"conv{k}", conv(channels, channels, 3, padding=1))
            self.conv.add_module(f"bn{k}", Abn(channels))
        up = nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)
        self.conv.add_module("conv_up", up)
        self.conv.add_module("bn_up", Abn(channels))
        self.roi_msk = nn.Conv2d(channels, things, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(R, 1 + K) logits, background first; (R, K, 4) deltas; (R, K, 28, 28) logits."""
        hidden = self.fc(F.avg_pool2d(x, 2).flatten(1))
        deltas = self.roi_bbx(hidden).unflatten(1, (-1, 4))
        return self.roi_cls(hidden), deltas, self.roi_msk(self.conv(x))


class MiniDl(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv1_3x3 = conv(channels, hidden, 3, padding=1)
        self.conv1_dil = conv(channels, hidden, 3, padding=6, dilation=6)
        self.conv1_glb = conv(channels, hidden, 1)
        self.bn1 = Abn(3 * hidden)
        self.conv2 = conv(3 * hidden, hidden, 1)
        self.bn2 = Abn(hidden)

    def forward(self, x: Tensor) -> Tensor:
        window = [min(64, side) for side in x.shape[2:]]
        pad = [n for side in reversed(window) for n in ((side - 1) // 2, side // 2)]
        average = F.pad(F.avg_pool2d(x, window, stride=1), pad, mode="replicate")
        branches = [self.conv1_3x3(x), self.conv1_dil(x), self.conv1_glb(average)]
        return self.bn2(self.conv2(self.bn1(torch.cat(branches, dim=1))))


class SemHead(nn.Module):
    def __init__(self, channels: int, hidden: int, classes: int):
        super().__init__()
        self.output = nn.ModuleList([MiniDl(channels, hidden) for _ in range(4)])
        self.conv_sem = nn.Conv2d(4 * hidden, classes, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """(N, C, H / 4, W / 4) logits."""
        maps = [own(x) for own, x in zip(self.output, levels[:4], strict=True)]
        maps = [F.interpolate(x, maps[0].shape[2:], mode="bilinear") for x in maps]
        return self.conv_sem(torch.cat(maps, dim=1))


class SeamsegNetwork(nn.Module):
    """By default that of Cityscapes."""

    def __init__(
        self,
        *,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        channels: int = 256,
        hidden: int = 1024,
        classes: int = 19,
        things: int = 8,
        extra: int = 1,
        anchors: int = 3,
    ):
        super().__init__()
        self.body = Body(blocks, width, channels, extra)
        self.rpn_head = RpnHead(channels, anchors)
        self.roi_head = RoiHead(channels, hidden, things)
        self.sem_head = SemHead(channels, channels // 2, classes)

"""MiniDL and its semantic head beside their direct form, with the same parameters.

Shape letters: N images, C channels, H W cells of a feature map or pixels of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor
from torch.nn import functional as F

from d2_cityscapes.benchmark.comparison import (
    Comparison,
    compare,
    one_thread,
    reported,
    size_text,
    time_in_turn,
)
from d2_cityscapes.benchmark.device import memory_peak, memory_start, synchronize
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.layers.losses import bootstrapped_cross_entropy
from d2_cityscapes.layers.mini_dl import MiniDL
from d2_cityscapes.modeling.panoptic.semantic_head import MiniDLSemSegHead

__all__ = ["MiniDLBenchmark", "benchmark_minidl", "direct_context", "direct_losses"]

_STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
_PEER = "direct form"
_LEAST = 5  # rounds of what takes seconds only


@dataclass(frozen=True)
class MiniDLBenchmark:
    """What is compared.

    Attributes:
        context_size: (height, width) in cells of the map that the context branch is measured on.
        image_size: (height, width) in pixels of the image that the head is measured on.
        gpu_image_size: the same on a GPU, where there is one, with a batch of two.
        rounds: how often each side runs; medians are reported. What takes seconds only, which is
            all but the direct form of the context branch, runs five times at least.
    """

    context_size: tuple[int, int] = (256, 512)
    image_size: tuple[int, int] = (512, 1024)
    gpu_image_size: tuple[int, int] = (1024, 2048)
    rounds: int = 1


def benchmark_minidl(
    settings: MiniDLBenchmark, *, report: Callable[[Sequence[Comparison]], None]
) -> list[Comparison]:
    """Run all comparisons; ``report`` gets each group of them as soon as it is measured.

    Those of the CPU on one thread, so that other work on the machine slows both sides alike.
    """
    measures = [_context, _head]
    if torch.cuda.is_available():
        measures.append(_head_on_gpu)
    with one_thread():
        return reported((measure(settings) for measure in measures), report)


def direct_context(module: MiniDL, x: Tensor) -> Tensor:
    """`MiniDL.context` as it is defined: each window is summed on its own."""
    (height, width) = (min(sides) for sides in zip(module.pool_size, x.shape[2:], strict=True))
    averages = module.branch_context(F.avg_pool2d(x, (height, width), stride=1))
    padding = ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)
    return F.pad(averages, padding, mode="replicate")


def direct_losses(
    head: MiniDLSemSegHead, features: Mapping[str, Tensor], targets: Tensor
) -> dict[str, Tensor]:
    """The loss of `MiniDLSemSegHead` as it is defined, with every tensor in full."""
    levels = [_direct_mini_dl(own, features[name]) for name, own in head.levels.items()]
    size = levels[0].shape[2:]
    resized = [F.interpolate(x, size=size, mode="bilinear") for x in levels[1:]]
    logits = head.predictor(torch.cat([levels[0], *resized], dim=1)).float()
    logits = F.interpolate(logits, scale_factor=head.stride, mode="bilinear")
    loss = bootstrapped_cross_entropy(logits, targets, head.loss_top_k, head.ignore_value)
    return {"loss_sem_seg": loss * head.loss_weight}


def _direct_mini_dl(module: Any, x: Tensor) -> Tensor:
    branches = (module.branch_local(x), module.branch_dilated(x), direct_context(module, x))
    hidden = F.leaky_relu(module.branch_norm(torch.cat(branches, dim=1)), module.slope)
    return F.leaky_relu(module.fuse_norm(module.fuse(hidden)), module.slope)


def _context(settings: MiniDLBenchmark) -> list[Comparison]:
    torch.manual_seed(0)
    module = MiniDL(256)
    x = torch.randn(1, 256, *settings.context_size, requires_grad=True)
    gradient = torch.randn(1, 128, *settings.context_size)

    def direct(x: Tensor) -> Tensor:
        return direct_context(module, x)

    def forward(branch: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
        return lambda: branch(x.detach())

    def forward_and_backward(branch: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
        return lambda: branch(x).backward(gradient)

    module.context(x[..., :80, :80]).sum().backward()  # the libraries initialise themselves once
    found = []
    for what, run in (("forward", forward), ("forward+backward", forward_and_backward)):
        # not in turn: the direct form takes most of a minute, ours is over before a burst of noise
        seconds = time_in_turn(
            {"ours": run(module.context)}, rounds=max(settings.rounds, _LEAST)
        ) | time_in_turn({_PEER: run(direct)}, rounds=settings.rounds)
        found += compare(
            f"MiniDL context branch, {size_text(x.shape)}, one thread, {what}", "s",
            seconds["ours"], {_PEER: seconds[_PEER]},
        )  # fmt: skip
    return found


def _head(settings: MiniDLBenchmark) -> list[Comparison]:
    step, direct = _steps(settings.image_size, batch=1, device="cpu")
    seconds = time_in_turn({"ours": step, _PEER: direct}, rounds=max(settings.rounds, _LEAST))
    return compare(
        f"semantic head, {size_text(settings.image_size)} px, one thread, forward+backward", "s",
        seconds["ours"], {_PEER: seconds[_PEER]},
    )  # fmt: skip


def _head_on_gpu(settings: MiniDLBenchmark) -> list[Comparison]:
    steps = dict(zip(("ours", _PEER), _steps(settings.gpu_image_size, 2, "cuda"), strict=True))
    peaks = {}
    for name, step in steps.items():  # also the first run of each, which is not timed
        before, _ = memory_start("cuda")
        step()
        peaks[name] = (memory_peak("cuda")[0] - before) / 1e6
    seconds = time_in_turn(steps, rounds=max(settings.rounds, _LEAST))
    what = f"semantic head, 2 x {size_text(settings.gpu_image_size)} px, GPU"
    return [
        *compare(
            f"{what}, forward+backward", "ms", 1000 * seconds["ours"],
            {_PEER: 1000 * seconds[_PEER]},
        ),
        *compare(f"{what}, peak memory above its inputs", "MB", peaks["ours"],
                 {_PEER: peaks[_PEER]}),
    ]  # fmt: skip


def _steps(
    size: tuple[int, int], batch: int, device: str
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward and backward pass of the head, ours and direct, on noise."""
    torch.manual_seed(0)
    shapes = {name: ShapeSpec(channels=256, stride=stride) for name, stride in _STRIDES.items()}
    head = MiniDLSemSegHead(shapes, num_classes=len(CITYSCAPES.classes)).to(device)
    features = {
        name: torch.randn(
            batch, 256, *(n // stride for n in size), device=device, requires_grad=True
        )
        for name, stride in _STRIDES.items()
    }
    targets = torch.randint(len(CITYSCAPES.classes), (batch, *size), device=device)

    def step(losses: Callable[[], dict[str, Tensor]]) -> None:
        losses()["loss_sem_seg"].backward()
        for x in (*features.values(), *head.parameters()):
            x.grad = None
        synchronize(device)

    return (
        lambda: step(lambda: head(features, targets)[1]),
        lambda: step(lambda: direct_losses(head, features, targets)),
    )

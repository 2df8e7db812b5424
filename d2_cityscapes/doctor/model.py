"""A tiny network forward and backward, on the CPU and on a GPU: do both compute the same?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from d2_cityscapes.doctor.findings import Finding
from d2_cityscapes.engine.devices import unusable_gpu

__all__ = ["model_findings"]

_TOPIC = "model"
_TOLERANCE = 1e-3  # relative, with TF32 off
_BOXES = [[0.0, 1.0, 1.0, 30.0, 20.0], [0.0, 1.5, 1.0, 30.0, 21.0], [0.0, 20.0, 10.0, 60.0, 50.0]]


def model_findings() -> Iterator[Finding]:
    """Of the CPU, and of the first GPU beside it where PyTorch has one."""
    try:
        expected = _step(torch.device("cpu"))
    except RuntimeError as error:
        yield Finding(
            _TOPIC, "cpu", _line(error), "pip install --force-reinstall torch torchvision"
        )
        return
    yield Finding(_TOPIC, "cpu", "computes convolution, RoIAlign and NMS, forward and backward")
    if not torch.cuda.is_available():
        reason = unusable_gpu()
        if reason:
            yield Finding(_TOPIC, "gpu", "there, but PyTorch cannot use it", reason)
        return
    name = torch.cuda.get_device_name(0)
    try:
        found = _step(torch.device("cuda", 0))
    except RuntimeError as error:
        yield Finding(
            _TOPIC, name, _line(error), "torch and torchvision have to be of one build and CUDA"
        )
        return
    off = max(
        ((a - b).norm() / b.norm().clamp(min=1e-12)).item()
        for a, b in zip(found, expected, strict=True)
    )
    remedy = "the GPU computes something else: update the driver, or test the card"
    yield Finding(
        _TOPIC, name, f"off by {off:.1e} of the CPU's gradients", remedy * (off > _TOLERANCE)
    )


def _step(device: torch.device) -> list[Tensor]:
    """Gradients of a small network and its kept boxes, on the CPU."""
    random = torch.Generator().manual_seed(0)
    convolution = nn.Conv2d(3, 8, 3, padding=1)
    for parameter in convolution.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=random) / 4)
    convolution.to(device)
    image = torch.randn(1, 3, 64, 64, generator=random).to(device)
    boxes = torch.tensor(_BOXES, device=device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        pooled = roi_align(convolution(image).relu(), boxes, output_size=7, aligned=True)
        pooled.square().mean().backward()
    kept = nms(boxes[:, 1:], torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
    gradients = [p.grad.cpu() for p in convolution.parameters() if p.grad is not None]
    return [*gradients, kept.float().cpu()]


def _line(error: Exception) -> str:
    return " ".join(f"fails: {error}".split())[:200]

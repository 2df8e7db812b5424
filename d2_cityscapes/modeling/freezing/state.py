"""The state of frozen layers, and whether it moved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from d2_cityscapes.modeling.freezing.freeze import unwrap

__all__ = ["checksums", "frozen_tensors", "norm_layers"]


def norm_layers(model: nn.Module, layers: Iterable[str]) -> list[nn.Module]:
    """The layers with running statistics (batch and instance norms) among the named ones.

    Kept in eval mode they do not update their statistics; ``model.train()`` undoes that.
    """
    model = unwrap(model)
    named = (model.get_submodule(name) for name in layers)
    return [layer for layer in named if isinstance(layer, _NormBase)]


def frozen_tensors(
    model: nn.Module, layers: Iterable[str], *, norm_statistics: bool = True
) -> dict[str, Tensor]:
    """Parameters and buffers of the named layers, by their full name.

    Args:
        model: a model, data-parallel or not.
        layers: names as in a `FreezePhase`; each stands for its own tensors, not for its children.
        norm_statistics: False leaves out the running statistics of norm layers.
    """
    model = unwrap(model)
    tensors: dict[str, Tensor] = {}
    for name in layers:
        layer = model.get_submodule(name)
        tensors |= layer.named_parameters(name, recurse=False)
        if norm_statistics or not isinstance(layer, _NormBase):
            tensors |= layer.named_buffers(name, recurse=False)
    return tensors


def checksums(tensors: dict[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the bytes of every tensor: equal if and only if every bit is."""
    return {name: _sha256(tensor) for name, tensor in tensors.items()}


def _sha256(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()

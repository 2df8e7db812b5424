"""The stages of a network of timm by the names of their modules, and what is done to them."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.backbones.weights import import_timm

__all__ = ["change_norms", "drop_unused", "freeze_stages", "has_parameters", "stages_of"]

logger = logging.getLogger(__name__)

_QUARTERS = 4  # plain networks have no stages


def stages_of(
    net: nn.Module, features: Sequence[Mapping[str, Any]], plain: bool
) -> list[list[str]]:
    """See `TimmNet.stages`; [] where they are not modules in a row.

    Args:
        net: of timm, whole.
        features: what it tells of its maps.
        plain: whether all of them have one size.
    """
    if plain:
        blocks = [feature["module"] for feature in features]
        ends = [blocks[math.ceil(len(blocks) * (i + 1) / _QUARTERS) - 1] for i in range(_QUARTERS)]
        cells, first = list(_cells(net, blocks)), blocks[0]
    else:
        ends = [f["module"] for f in features if f["reduction"] >= 4]
        fine = [f["module"] for f in features if f["reduction"] < 4]
        cells = list(_cells(net, [*fine, *ends]))
        first = ends[0] if ends else ""
        if fine and fine[-1] in cells:  # the stage of stride 4 begins behind that of 2
            first = cells[cells.index(fine[-1]) + 1]
    if not {first, *ends}.issubset(cells):
        return []
    begin = cells.index(first)
    stages = [cells[:begin]]
    for end in ends:
        stop = cells.index(end) + 1
        stages.append(cells[begin:stop])
        begin = stop
    return stages


def _cells(module: nn.Module, ends: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Names of the outermost modules in their order that hold no end inside of them."""
    for name, child in module.named_children():
        full = prefix + name
        if any(end.startswith(f"{full}.") for end in ends):
            yield from _cells(child, ends, f"{full}.")
        else:
            yield full


def has_parameters(net: nn.Module, name: str) -> bool:
    """Whether a module is there, and was not pruned to nothing."""
    try:
        return any(True for _ in net.get_submodule(name).parameters())
    except AttributeError:
        return False


def drop_unused(net: nn.Module, maps: Sequence[Tensor]) -> None:
    """Take away the modules that no map depends on, such as norms of a classifier.

    Single parameters of that kind do not train. Nothing may be frozen yet.

    Args:
        net: of timm.
        maps: what it gave.
    """
    torch.stack([tensor.sum() for tensor in maps]).sum().backward()
    unused = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    for full, module in list(net.named_modules()):
        own = [name for name, _ in module.named_parameters(full)]
        above, _, last = full.rpartition(".")
        if full and own and unused.issuperset(own):
            net.get_submodule(above).add_module(last, nn.Identity())
            unused.difference_update(own)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in unused)
    net.zero_grad(set_to_none=True)


def change_norms(net: nn.Module, norm: str, name: str) -> None:
    """Batch norms of another kind, in place."""
    if not norm:
        return
    layers: Any = import_timm().layers
    kinds = {"FrozenBN": layers.freeze_batch_norm_2d, "SyncBN": layers.convert_sync_batchnorm}
    if norm not in kinds:
        raise D2CityscapesError(f"MODEL.TIMM.NORM {norm!r}: use {', '.join(kinds)}, or '' for none")
    if not any(isinstance(layer, _BatchNorm) for layer in net.modules()):
        raise D2CityscapesError(f"MODEL.TIMM.NORM {norm}: {name} has no batch norms: set it to ''")
    kinds[norm](net)


def freeze_stages(net: nn.Module, stages: Sequence[Sequence[str]], count: int, name: str) -> None:
    """Stem and first stages, with frozen norms, as Detectron2's ResNets have it."""
    if count < 1:
        return
    if not stages:
        raise D2CityscapesError(
            f"MODEL.BACKBONE.FREEZE_AT {count}: {name} has no stages in a row: set it to 0, and "
            "freeze by MODEL.FREEZE.MODULES"
        )
    layers: Any = import_timm().layers
    frozen = list(itertools.chain.from_iterable(stages[:count]))
    for full in frozen:
        above, _, last = full.rpartition(".")
        module = layers.freeze_batch_norm_2d(net.get_submodule(full))
        net.get_submodule(above).add_module(last, module)
        module.requires_grad_(False)
    for parameter in net.parameters(recurse=False):  # positions and tokens
        parameter.requires_grad_(False)
    logger.info("%s: MODEL.BACKBONE.FREEZE_AT %d freezes %s", name, count, ", ".join(frozen))

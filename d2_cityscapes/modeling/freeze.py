"""Freezing parts of a model by name, and proving that they did not move."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel

from d2_cityscapes.errors import D2CityscapesError

__all__ = [
    "FreezeError",
    "FreezeReport",
    "checksums",
    "find_modules",
    "freeze_modules",
    "frozen_tensors",
    "norm_layers",
    "unwrap",
]


class FreezeError(D2CityscapesError):
    """A freeze pattern that fits nothing, or a frozen module that moved."""


@dataclass(frozen=True)
class FreezeReport:
    """What is frozen, in numbers of parameters.

    Attributes:
        frozen_modules: names of the outermost modules that the patterns froze.
        groups: (name, frozen parameters, trainable parameters) of each part of the model, whoever
            froze them (Detectron2's FREEZE_AT counts too).
    """

    frozen_modules: tuple[str, ...]
    groups: tuple[tuple[str, int, int], ...]

    @property
    def frozen_parameters(self) -> int:
        return sum(frozen for _, frozen, _ in self.groups)

    @property
    def trainable_parameters(self) -> int:
        return sum(trainable for _, _, trainable in self.groups)

    def table(self) -> str:
        """One line for each group and a total."""
        rows = [*self.groups, ("total", self.frozen_parameters, self.trainable_parameters)]
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{'module':<{width}}  {'frozen':>12}  {'trainable':>12}"]
        lines += [f"{name:<{width}}  {frozen:>12,}  {train:>12,}" for name, frozen, train in rows]
        return "\n".join(lines)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a data-parallel wrapper; any other module as it is."""
    return model.module if isinstance(model, DataParallel | DistributedDataParallel) else model


def find_modules(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Names of the outermost modules that match, in the order of ``named_modules()``.

    Args:
        model: a model, data-parallel or not.
        patterns: shell-style patterns over the names of all modules; ``*`` also matches dots.

    Raises:
        FreezeError: a pattern that matches no module, with the nearest names.
    """
    names = [name for name, _ in unwrap(model).named_modules() if name]
    found: set[str] = set()
    for pattern in patterns:
        matches = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            near = difflib.get_close_matches(pattern.strip("*."), names, n=3, cutoff=0.4)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise FreezeError(f"MODEL.FREEZE.MODULES: {pattern!r} matches no module{hint}")
        found.update(matches)
    return [name for name in names if name in found and not found.intersection(_parents(name))]


def freeze_modules(model: nn.Module, patterns: Sequence[str]) -> FreezeReport:
    """Turn off the gradients of every module that matches a pattern, with all that is inside.

    Call it before the optimizer and a data-parallel wrapper are made: both keep what they find.

    Raises:
        FreezeError: a pattern that matches nothing, or nothing is left to train.
    """
    model = unwrap(model)
    frozen = find_modules(model, patterns)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    report = FreezeReport(tuple(frozen), tuple(_groups(model)))
    if frozen and report.trainable_parameters == 0:
        raise FreezeError(f"MODEL.FREEZE.MODULES {list(patterns)} leaves no parameter to train")
    return report


def norm_layers(model: nn.Module, modules: Iterable[str]) -> list[nn.Module]:
    """The layers with running statistics (batch and instance norms) inside the named modules.

    Kept in eval mode they do not update their statistics; ``model.train()`` undoes that.
    """
    model = unwrap(model)
    inside = (layer for name in modules for layer in model.get_submodule(name).modules())
    return [layer for layer in inside if isinstance(layer, _NormBase)]


def frozen_tensors(
    model: nn.Module, modules: Iterable[str], *, norm_statistics: bool = True
) -> dict[str, Tensor]:
    """Parameters and buffers of the named modules, by their full name.

    Args:
        model: a model, data-parallel or not.
        modules: names as `find_modules` returns them.
        norm_statistics: False leaves out the running statistics of norm layers.
    """
    model = unwrap(model)
    tensors: dict[str, Tensor] = {}
    for name in modules:
        for inner, layer in model.get_submodule(name).named_modules(prefix=name):
            own = dict(layer.named_parameters(inner, recurse=False))
            if norm_statistics or not isinstance(layer, _NormBase):
                own |= dict(layer.named_buffers(inner, recurse=False))
            tensors |= own
    return tensors


def checksums(tensors: dict[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the bytes of every tensor: equal if and only if every bit is."""
    return {name: _sha256(tensor) for name, tensor in tensors.items()}


def _sha256(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _groups(model: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Parameters counted by the first two parts of the name of their module."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        group = ".".join(name.split(".")[:-1][:2]) or name
        counts.setdefault(group, [0, 0])[parameter.requires_grad] += parameter.numel()
    for group, (frozen, trainable) in counts.items():
        yield group, frozen, trainable

"""Where a config value acts: two builds of everything that trains, compared part by part."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import types
import weakref
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from d2_cityscapes.engine.checkpoints.weights_file import About
from d2_cityscapes.engine.trainer import Trainer

__all__ = ["differences", "fingerprint"]

# Attribute dictionaries of nn.Module, whose entries are attributes to the reader.
_TRANSPARENT = ("_modules", "_parameters", "_buffers")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, Path)
_TORCH_PLAIN = (torch.dtype, torch.device, torch.Size, np.generic)
_NUMBERS = 2**40  # an integer above is id(...), which differs from build to build
# Of no effect on training, but a way to everything else.
_OPAQUE = (
    types.ModuleType,
    types.GeneratorType,
    weakref.ReferenceType,
    *weakref.ProxyTypes,
    logging.Logger,
    io.IOBase,
)


def fingerprint(trainer: Trainer) -> dict[str, str]:
    """Every plain value in a trainer, by the path that leads to it.

    Model, optimizer, schedule, data, hooks, evaluators: attributes, thresholds, parameter groups,
    what trains, random weights. The config itself, which everything could look up, does not count:
    a value that stays in there has not arrived.

    Args:
        trainer: just built, under a fixed seed.

    Returns:
        Path, e.g. "model.proposal_generator.anchor_matcher.thresholds[1]", -> value as text.
    """
    cfg = trainer.cfg
    return _walk(
        {
            "model": trainer.model,
            "optimizer": trainer.optimizer,
            "schedule": trainer.scheduler,
            "data": trainer.data_loader,
            "weights": cfg.MODEL.WEIGHTS,
            "seed": cfg.SEED,
            "test": [trainer.build_test_loader(cfg, name) for name in cfg.DATASETS.TEST],
            "evaluators": [trainer.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST],
            "trainer": trainer,
        }
    )


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The paths at which two fingerprints differ."""
    return [path for path in {**one, **other} if one.get(path) != other.get(path)]


def _walk(roots: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    first: dict[int, str] = {}  # id -> path at which an object was met
    keep: list[Any] = []  # what is made on the way must live, or ids come twice
    stack = [(name, value) for name, value in reversed(list(roots.items()))]
    while stack:
        path, value = stack.pop()
        leaf = _leaf(value)
        if leaf is not None:
            found[path] = leaf
            continue
        if id(value) in first:
            found[path] = f"same as {first[id(value)]}"
            continue
        first[id(value)] = path
        keep.append(value)
        found[path] = type(value).__qualname__
        if isinstance(value, torch.Tensor | np.ndarray):
            found[path] = _array_text(value)
            continue
        stack += reversed([(path + step, part) for step, part in _parts(value)])
    return found


def _leaf(value: Any) -> str | None:
    """Text of a value without parts; None for what has some."""
    if isinstance(value, int) and value > _NUMBERS:
        return "address"
    if isinstance(value, _PLAIN + _TORCH_PLAIN):
        return repr(value)
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, _OPAQUE):
        return type(value).__name__
    if isinstance(value, CfgNode) and any(isinstance(v, CfgNode) for v in value.values()):
        return "config"  # the whole of it, or a section with sections
    if isinstance(value, About):
        return "config"  # which is written beside the weights
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
        if isinstance(value, CfgNode):
            return
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield "{}", sorted(_leaf(part) or type(part).__qualname__ for part in value)
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from ((".function", value.__func__.__qualname__), (".self", value.__self__))
    elif isinstance(value, types.FunctionType):
        yield ".name", value.__qualname__
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield from ((f".{name}", _cell(cell)) for name, cell in cells)
    for name, part in getattr(value, "__dict__", {}).items():
        if name in _TRANSPARENT and isinstance(value, nn.Module):
            yield from ((f".{inner}", child) for inner, child in part.items())
        elif name.endswith("_hooks") and isinstance(part, Mapping):
            # torch numbers the hooks of a process, so that every build has other keys
            yield from ((f".{name}[{i}]", hook) for i, hook in enumerate(part.values()))
        elif not isinstance(value, types.FunctionType):
            yield f".{name}", part


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _array_text(value: torch.Tensor | np.ndarray) -> str:
    """Shape, type, content, and whether it trains."""
    trains = isinstance(value, torch.Tensor) and value.requires_grad
    array = value
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        array = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else np.empty(0)
    content = (
        repr(array.tolist()).encode()
        if array.dtype == object
        else np.ascontiguousarray(array).tobytes()
    )
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    return f"{tuple(value.shape)} {value.dtype} {'trains' if trains else 'fixed'} {digest}"

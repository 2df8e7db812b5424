"""Layers of a network under other names: every tensor accounted for, none lost silently."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import Tensor

from d2_cityscapes.convert.files import STEPS, mismatch
from d2_cityscapes.convert.kinds import ConversionError

__all__ = [
    "AFFINE",
    "NORM",
    "WEIGHT",
    "Layer",
    "body_layers",
    "check_rows",
    "count_modules",
    "left_behind",
    "normed",
    "pick_classes",
    "rename",
    "rows_of",
]

WEIGHT = ("weight",)
AFFINE = ("weight", "bias")
NORM = ("weight", "bias", "running_mean", "running_var")

Layer = tuple[str, str, tuple[str, ...]]  # their module, ours, the tensors of both


def rename(weights: Iterable[str], layers: Iterable[Layer], network: str) -> dict[str, str]:
    """Name of every tensor -> ours.

    Args:
        weights: their names; step counters of norms count as none.
        layers: all that the network has.
        network: what it is, for the error.

    Raises:
        ConversionError: names that are missing or that no layer has.
    """
    names = {
        f"{theirs}.{tensor}": f"{ours}.{tensor}"
        for theirs, ours, tensors in layers
        for tensor in tensors
    }
    there = {name for name in weights if not name.endswith(STEPS)}
    problems = [
        *(f"missing: {name}" for name in names.keys() - there),
        *(f"unknown: {name}" for name in there - names.keys()),
    ]
    if problems:
        raise mismatch(f"not {network}", sorted(problems))
    return names


def normed(names: Collection[str], convolution: str, norm: str, ours: str) -> Iterator[Layer]:
    """A convolution of any name and its norm, or its bias where it has none."""
    has_norm = f"{norm}.weight" in names
    biased = f"{convolution}.bias" in names or not has_norm
    yield convolution, ours, AFFINE if biased else WEIGHT
    if has_norm:
        yield norm, f"{ours}.norm", NORM


def body_layers(names: Mapping[str, str], root: str) -> Iterator[Layer]:
    """A layer for each tensor of a body that has been held against its source already.

    Args:
        names: in the file -> ours.
        root: what is before the names of the network in the file.
    """
    for theirs, ours in names.items():
        module, _, tensor = theirs.removeprefix(root).rpartition(".")
        yield module, ours.rpartition(".")[0], (tensor,)


def count_modules(weights: Iterable[str], prefix: str, *, first: int = 0, least: int = 1) -> int:
    """How many modules there are with numbers behind the prefix, counted from `first`."""
    numbers = {n.removeprefix(prefix).split(".")[0] for n in weights if n.startswith(prefix)}
    return max([least, *(int(n) - first + 1 for n in numbers if n.isdecimal())])


def check_rows(weights: Mapping[str, Tensor], expected: Mapping[str, int], why: str) -> None:
    """Refuse weights whose layers do not agree on their numbers of rows.

    Args:
        weights: by name.
        expected: name of a layer -> rows of its weight and bias; those that are not there are
            passed over.
        why: from what the numbers follow.

    Raises:
        ConversionError: another number.
    """
    for layer, number in expected.items():
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in weights and weights[name].shape[:1] != (number,):
                raise ConversionError(
                    f"{name} is {tuple(weights[name].shape)}; with {why} it has {number} rows"
                )


def pick_classes(tensor: Tensor, picked: Iterable[int], each: int = 1) -> Tensor:
    """The rows of some classes, each of which has `each` of them, in the order of `picked`."""
    blocks = tensor.reshape(-1, each, *tensor.shape[1:])
    return blocks[list(picked)].reshape(-1, *tensor.shape[1:])


def rows_of(tensor: Tensor) -> int:
    """Its length; 0 of one without dimensions."""
    return tensor.shape[0] if tensor.ndim else 0


def left_behind(names: Iterable[str]) -> str:
    """A line on tensors that nothing was made of, by the first part of their names."""
    groups: dict[str, int] = {}
    for name in names:
        group = STEPS if name.endswith(STEPS) else name.split(".")[0]
        groups[group] = groups.get(group, 0) + 1
    return "left behind: " + (
        ", ".join(f"{g} ({n})" for g, n in sorted(groups.items())) or "nothing"
    )

"""The anchors that weights were trained with, written down among the weights.

An *anchor record* is an (A, 3) float64 tensor with a row for each anchor of a generator: its
feature level, size [network px] and height / width, in the order of the generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = [
    "RECORD",
    "REMEDY",
    "anchor_difference",
    "describe_record",
    "find_records",
    "make_record",
    "record_lists",
    "record_of_cells",
]

RECORD = "anchor_record"  # last part of its name in a state dict
REMEDY = (
    "use the config.yaml of that training, or give MODEL.ANCHOR_GENERATOR the SIZES and "
    "ASPECT_RATIOS that it had"
)
_TOLERANCE = 1e-5  # relative; float32 boxes hold less than what is beyond it


def make_record(sizes: Sequence, aspect_ratios: Sequence, num_levels: int) -> Tensor:
    """A record from Detectron2's two lists, each for all levels or with one list for each level."""
    levels = zip(_per_level(sizes, num_levels), _per_level(aspect_ratios, num_levels), strict=True)
    rows = [
        (level, size, ratio)
        for level, (own_sizes, own_ratios) in enumerate(levels)
        for size in own_sizes
        for ratio in own_ratios
    ]
    return torch.tensor(rows, dtype=torch.float64)


def record_of_cells(cell_anchors: Iterable[Tensor]) -> Tensor:
    """The record of a generator of any kind, from its (A_l, 4) XYXY boxes of each level l."""
    rows = [torch.zeros(0, 3, dtype=torch.float64)]
    for level, boxes in enumerate(cell_anchors):
        widths, heights = (boxes[:, 2:] - boxes[:, :2]).cpu().double().unbind(dim=1)
        number = torch.full_like(widths, level)
        rows.append(torch.stack([number, (widths * heights).sqrt(), heights / widths], dim=1))
    return torch.cat(rows)


def record_lists(record: Tensor) -> tuple[list[list[float]], list[list[float]]]:
    """MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS, with a list for each level, of a record."""
    sizes, ratios = [], []
    for level in record[:, 0].unique():
        rows = record[record[:, 0] == level].tolist()
        number = sum(size == rows[0][1] for _, size, _ in rows)  # sizes are outermost
        sizes.append([size for _, size, _ in rows[::number]])
        ratios.append([ratio for _, _, ratio in rows[:number]])
    return sizes, ratios


def describe_record(record: Tensor) -> str:
    """In the words of a config: "SIZES [[32], [64]] ASPECT_RATIOS [[0.5, 1, 2]]"."""
    rounded = torch.tensor([[float(f"{x:.6g}") for x in row] for row in record.tolist()])
    texts = []
    for name, lists in zip(("SIZES", "ASPECT_RATIOS"), record_lists(rounded), strict=True):
        levels = [f"[{', '.join(f'{value:.6g}' for value in values)}]" for values in lists]
        distinct = levels if len(set(levels)) > 1 else levels[:1]
        texts.append(f"{name} [{', '.join(distinct)}]")
    return " ".join(texts)


def find_records(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every record in a state dict, by its full name."""
    return {k: record for k, record in state_dict.items() if k.rpartition(".")[2] == RECORD}


def anchor_difference(record: Tensor, cell_anchors: Iterable[Tensor]) -> str:
    """Whether weights were trained with other anchors than the model has.

    Args:
        record: of the weights.
        cell_anchors: of the model's generator.

    Returns:
        Both sets in words; "" where they are the same.
    """
    own = record_of_cells(cell_anchors)
    record = record.cpu().double()
    if record.shape == own.shape and torch.allclose(record, own, rtol=_TOLERANCE, atol=0):
        return ""
    return (
        f"trained with anchors of {describe_record(record)}, "
        f"but the model has {describe_record(own)}"
    )


def _per_level(values: Sequence, num_levels: int) -> list[Sequence[float]]:
    levels = list(values) if isinstance(values[0], Sequence) else [values]
    return levels * num_levels if len(levels) == 1 else levels

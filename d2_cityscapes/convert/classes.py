"""Weights for the classes of one data set with their heads for those of another.

A class takes over the rows of the class that means the same; others begin at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from d2_cityscapes.convert.files import Conversion, counted, read_checkpoint, write_conversion
from d2_cityscapes.convert.kinds import ConversionError
from d2_cityscapes.convert.picked_rows import pick_rows
from d2_cityscapes.labels import CITYSCAPES, IDD, VISTAS, LabelTable
from d2_cityscapes.labels.record import KINDS, MAPPED, class_differences, class_record
from d2_cityscapes.labels.rows import class_rows

__all__ = [
    "SAME_MEANING",
    "convert_class_file",
    "convert_idd_file",
    "convert_vistas_file",
    "map_classes",
]

# (table of the weights, table of the data) -> class of the data -> the class that means the same.
# Classes of one name, upper case or not, need no entry.
SAME_MEANING = {
    (VISTAS.name, CITYSCAPES.name): {
        "traffic sign": "Traffic Sign (Front)",  # their backs are void in Cityscapes
        "rider": "Bicyclist",
        "train": "On Rails",  # which has no instances in Vistas
    },
    # terrain is a part of "rail track" there, and train of "vehicle fallback"
    (IDD.name, CITYSCAPES.name): {},
}


def convert_class_file(
    input: Path,
    output: Path,
    *,
    source: LabelTable,
    target: LabelTable,
    seed: int = 0,
    details: bool = False,
) -> tuple[str, ...]:
    """Read a file, map its classes, write another; returns the lines of the report.

    Args:
        input: weights that were trained for the classes of ``source``.
        output: the file to write.
        source, target, seed: see `map_classes`.
        details: whether the report has a line for every tensor.

    Raises:
        ConversionError: as there; or the file says that it was trained for other classes.
    """
    weights, record = read_checkpoint(input)
    if differences := class_differences(record, source):
        raise ConversionError(f"{input}: {next(iter(differences.values()))}")
    try:
        found = map_classes(weights, source, target, seed=seed)
    except ConversionError as error:
        raise ConversionError(f"{input}: {error}") from error
    return write_conversion(output, found, weights, details=details)


convert_vistas_file = partial(convert_class_file, source=VISTAS, target=CITYSCAPES)
convert_idd_file = partial(convert_class_file, source=IDD, target=CITYSCAPES)


def map_classes(
    weights: Mapping[str, Tensor], source: LabelTable, target: LabelTable, *, seed: int = 0
) -> Conversion:
    """The weights with the rows of their predictors for the classes of another table.

    These are the classifier, the boxes by class and the masks of RoI heads, semantic heads, and the
    classifier of queries. Layers that are the same for all classes, and everything below, stay.

    Args:
        weights: trained for the classes of ``source``.
        source: its table, see `SAME_MEANING`.
        target: the table of the new classes.
        seed: of the random rows of classes that ``source`` does not have.

    Raises:
        ConversionError: a predictor of another number of classes, or none.
    """
    generator = torch.Generator().manual_seed(seed)
    mapped: dict[str, Tensor] = {}
    lines = []
    for kind in KINDS:
        old, names = class_record(source)[kind], class_record(target)[kind]
        same = _same_meaning(source, target, old, names)
        picked = [old.index(same[name]) if name in same else None for name in names]
        before = len(mapped)
        for name, rows in class_rows(weights, kind):
            tensor = weights[name]
            if rows.fits(tensor, len(old)) or (rows.whole and not rows.is_agnostic(tensor)):
                mapped[name] = pick_rows(name, tensor, rows, picked, len(old), generator)
        if len(mapped) > before:
            lines.append(_line(kind, source, names, same, len(mapped) - before, seed))
    if not mapped:
        raise ConversionError(
            f"no predictor with rows for the {len(source.things)} things or {len(source.classes)} "
            f"classes of {source.name}"
        )
    tensors = {name: mapped.get(name, tensor) for name, tensor in weights.items()}
    unchanged = f"unchanged: {counted(len(weights) - len(mapped), 'tensor')}"
    return Conversion(tensors, (*lines, unchanged), class_record(target) | {MAPPED: lines})


def _same_meaning(
    source: LabelTable, target: LabelTable, old: Sequence[str], names: Sequence[str]
) -> dict[str, str]:
    """New class -> old class, for those that have one."""
    by_name = {name.casefold(): name for name in old}
    said = SAME_MEANING.get((source.name, target.name), {})
    found = {name: by_name.get(said.get(name, name).casefold()) for name in names}
    return {name: other for name, other in found.items() if other is not None}


def _line(
    kind: str,
    source: LabelTable,
    names: Sequence[str],
    same: Mapping[str, str],
    tensors: int,
    seed: int,
) -> str:
    """What became of the rows of a kind, in words."""
    taken = [
        name if same[name].casefold() == name.casefold() else f"{name} (from {same[name]})"
        for name in names
        if name in same
    ]
    new = [name for name in names if name not in same]
    return (
        f"{kind}: rows of {len(taken)} of {len(names)} taken from {source.name} in "
        f"{counted(tensors, 'tensor')}: {', '.join(taken) or 'none'}; at random (seed {seed}): "
        f"{', '.join(new) or 'none'}"
    )

"""What scores of predicted against true maps have in common: their input, and sums over images.

Shape letters: H, W pixels; R runs of pixels with equal ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from d2_cityscapes.errors import D2CityscapesError, first_few
from d2_cityscapes.labels import INSTANCE_DIVISOR, VOID_TRAIN_ID, LabelTable

__all__ = [
    "InvalidMapError",
    "MapScore",
    "all_in",
    "as_map",
    "check_instance_ids",
    "check_train_ids",
    "paired_runs",
    "starts_of_runs",
]


class InvalidMapError(D2CityscapesError, ValueError):
    """A map, or what is to become one, is not in the encoding of its label table."""


class MapScore:
    """Base of scores that are float64 sums over images.

    Args:
        table: classes of the dataset.
        sums: the state without images.
    """

    def __init__(self, table: LabelTable, sums: np.ndarray) -> None:
        self.table = table
        self._sums = sums

    def merge(self, other: MapScore | np.ndarray) -> None:
        """Add the sums of another instance over the same classes, or a `state` of one."""
        if isinstance(other, MapScore) and other.table.hash != self.table.hash:
            raise InvalidMapError(
                f"cannot merge scores over the classes of {other.table.name!r} into those of "
                f"{self.table.name!r}: both must use one label table"
            )
        sums = other.state() if isinstance(other, MapScore) else np.asarray(other)
        if sums.shape != self._sums.shape:
            raise InvalidMapError(
                f"a state over these classes is {self._sums.shape}, found {sums.shape}"
            )
        self._sums += sums

    def state(self) -> np.ndarray:
        """The float64 sums over images. States of parts just add."""
        return self._sums.copy()


def paired_runs(pred_map: Any, true_map: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs, in reading order, in which neither of two maps changes.

    Args:
        pred_map: (H, W) integers, numpy or torch on any device.
        true_map: (H, W) likewise.

    Returns:
        Predicted and true value of each run, and its length in pixels: (R,) each.

    Raises:
        InvalidMapError: other shapes or types.
    """
    pred, true = as_map(pred_map, "prediction"), as_map(true_map, "truth")
    if pred.shape != true.shape:
        raise InvalidMapError(
            f"prediction and truth differ in shape, {pred.shape} and {true.shape}: resize the "
            "prediction to the size of the annotated image"
        )
    pred, true = pred.ravel(), true.ravel()
    starts = starts_of_runs(pred, true)
    return pred[starts], true[starts], np.diff(starts, append=pred.size)


def starts_of_runs(*flat: np.ndarray) -> np.ndarray:
    """(R,) where the runs begin in which none of the arrays, of one length each, changes."""
    changes = np.zeros(flat[0].size, dtype=bool)
    changes[:1] = True
    for values in flat:
        changes[1:] |= values[1:] != values[:-1]
    return np.flatnonzero(changes)


def check_train_ids(train_ids: np.ndarray, table: LabelTable, role: str) -> None:
    """Refuse train ids that a label table does not know; 255 is void. See `check_instance_ids`."""
    known = np.zeros(VOID_TRAIN_ID + 1, dtype=bool)
    known[[*range(len(table.classes)), VOID_TRAIN_ID]] = True
    if not all_in(train_ids, known):
        wrong = [int(v) for v in np.unique(train_ids) if not all_in(v, known)]
        raise InvalidMapError(
            f"{role}: {first_few(wrong, 5)} are no train ids of the {table.name} labels; expected "
            f"0 to {len(table.classes) - 1}, or {VOID_TRAIN_ID} for void"
        )


def check_instance_ids(ids: np.ndarray, table: LabelTable, role: str) -> None:
    """Refuse ids that a label table does not know; ``role`` names the map in the error."""
    if not all_in(ids, table.known_ids):
        unknown = first_few(table.unknown_ids(ids), 5)
        raise InvalidMapError(
            f"{role}: ids {unknown} are unknown to the {table.name} labels; "
            f"expected label ids, or label_id * {INSTANCE_DIVISOR} + k for the k-th instance of a "
            "thing class"
        )


def all_in(values: np.ndarray, allowed: np.ndarray) -> bool:
    """Whether all values are indices of true entries."""
    if not values.size:
        return True
    return bool(values.min() >= 0 and values.max() < len(allowed) and allowed[values].all())


def as_map(values: Any, role: str) -> np.ndarray:
    """An (H, W) map of integers as an array.

    Args:
        values: the map, numpy or torch on any device.
        role: its name in the error.

    Raises:
        InvalidMapError: another shape, or other values.
    """
    try:
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
        found = f"{array.dtype} of {array.shape}"
        if array.dtype.kind in "iu" and array.ndim == 2:
            return array
    except (TypeError, ValueError):  # bfloat16, nested lists of several lengths
        found = str(getattr(values, "dtype", type(values).__name__))
    raise InvalidMapError(
        f"{role}: expected an (H, W) map of integers, found {found}; ids are not scores, convert "
        "the map on purpose"
    )

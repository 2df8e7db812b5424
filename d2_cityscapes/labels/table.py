"""A table of classes and the lookup arrays between its id spaces; see `d2_cityscapes.labels`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from d2_cityscapes.errors import D2CityscapesError, first_few

__all__ = [
    "INSTANCE_DIVISOR",
    "MOST_THINGS",
    "VOID_TRAIN_ID",
    "LabelClass",
    "LabelTable",
    "LabelTableError",
]

INSTANCE_DIVISOR = 1000
VOID_TRAIN_ID = 255
_NUM_IDS = 1 << 16  # instance ids are stored in 16 bits
# largest label id with room for 1000 instances, and so how many things there can be
MOST_THINGS = _NUM_IDS // INSTANCE_DIVISOR - 1


class LabelTableError(D2CityscapesError, ValueError):
    """Classes whose ids or names do not fit together."""


@dataclass(frozen=True)
class LabelClass:
    """One evaluated class.

    Attributes:
        name: the benchmark's name, e.g. "traffic light".
        label_id: id in the annotation files.
        train_id: 0..C-1 in the benchmark's order.
        thing_id: contiguous id among the thing classes, None for stuff.
        color: RGB, 0..255.
    """

    name: str
    label_id: int
    train_id: int
    thing_id: int | None
    color: tuple[int, int, int]

    @property
    def is_thing(self) -> bool:
        return self.thing_id is not None


@dataclass(frozen=True)
class LabelTable:
    """The classes of a dataset and the lookup arrays between its id spaces.

    Attributes:
        name: name of the dataset family, e.g. "cityscapes".
        classes: the C evaluated classes, `classes[t].train_id == t`.
        label_names: name of every label id that annotations may hold, void labels included.

    Raises:
        LabelTableError: ids that are out of range, have holes or stand for two classes, or two
            classes of one name.
    """

    name: str
    classes: tuple[LabelClass, ...]
    label_names: tuple[tuple[int, str], ...]

    def __post_init__(self) -> None:
        for c in self.classes:
            largest = MOST_THINGS if c.is_thing else INSTANCE_DIVISOR - 1
            if not 1 <= c.label_id <= largest:
                raise LabelTableError(
                    f"{self.name}: label id {c.label_id} of {c.name}; classes have ids from 1 on "
                    f"(0 is void), things up to {MOST_THINGS}, so that instance ids fit 16 bits, "
                    f"stuff up to {INSTANCE_DIVISOR - 1}"
                )
        for what, values in (
            ("name", [c.name for c in self.classes]),
            ("label id", [c.label_id for c in self.classes]),
        ):
            value, times = next(iter(Counter(values).most_common(1)), ("", 0))
            if times > 1:
                raise LabelTableError(
                    f"{self.name}: {times} classes of the {what} {value}; every class has its own"
                )
        train_ids = [c.train_id for c in self.classes]
        if train_ids != [*range(len(train_ids))] or len(train_ids) > VOID_TRAIN_ID:
            raise LabelTableError(
                f"{self.name}: train ids {first_few(train_ids, 8)}; classes are listed by train "
                f"id, which goes 0, 1, 2, ... without holes, up to {VOID_TRAIN_ID - 1}"
            )
        thing_ids = sorted(c.thing_id for c in self.classes if c.thing_id is not None)
        if thing_ids != [*range(len(thing_ids))]:
            raise LabelTableError(
                f"{self.name}: thing ids {first_few(thing_ids, 8)}; they go 0, 1, 2, ... without "
                "holes, one for each class with instances"
            )

    def __reduce__(self) -> tuple:
        return LabelTable, (self.name, self.classes, self.label_names)  # not the lookup arrays

    @cached_property
    def things(self) -> tuple[LabelClass, ...]:
        """The thing classes; `things[i].thing_id == i`."""
        found = [c for c in self.classes if c.thing_id is not None]
        return tuple(sorted(found, key=lambda c: c.thing_id or 0))

    @cached_property
    def stuff(self) -> tuple[LabelClass, ...]:
        """The stuff classes in train-id order."""
        return tuple(c for c in self.classes if not c.is_thing)

    @cached_property
    def known_ids(self) -> np.ndarray:
        """bool (M,): whether an instance id 0..M-1 may occur in an annotation of this dataset.

        ``label_id * 1000 + k`` is allowed for every labelled class, void classes with instances
        (caravan, trailer) included.
        """
        labels = max(i for i, _ in self.label_names) + 1
        known = np.zeros(min(labels * INSTANCE_DIVISOR, _NUM_IDS), dtype=bool)
        for label_id, _ in self.label_names:
            known[label_id] = True
            start = label_id * INSTANCE_DIVISOR
            if label_id > 0:
                known[start : start + INSTANCE_DIVISOR] = True
        return known

    @cached_property
    def train_id_of(self) -> np.ndarray:
        """uint8 (M,): train id of every instance id or plain label id; 255 where it is void.

        ``table.train_id_of[instance_ids]`` turns a map of instance ids into a map of train ids.
        """
        lookup = np.full(len(self.known_ids), VOID_TRAIN_ID, dtype=np.uint8)
        for c in self.classes:
            start = c.label_id * INSTANCE_DIVISOR
            lookup[start : start + INSTANCE_DIVISOR] = c.train_id
            lookup[c.label_id] = c.train_id
        return lookup

    @cached_property
    def label_id_of_train(self) -> np.ndarray:
        """int32 (256,): label id of every train id; 0 (unlabeled) for 255 and unused ids."""
        lookup = np.zeros(256, dtype=np.int32)
        for c in self.classes:
            lookup[c.train_id] = c.label_id
        return lookup

    @cached_property
    def thing_id_of_train(self) -> np.ndarray:
        """int64 (256,): thing id of every train id; -1 where the class is stuff or void."""
        lookup = np.full(256, -1, dtype=np.int64)
        for thing_id, c in enumerate(self.things):
            lookup[c.train_id] = thing_id
        return lookup

    @cached_property
    def is_thing_id(self) -> np.ndarray:
        """bool (M,): whether an instance id 0..M-1 is an instance or a group of a thing class."""
        return self.thing_id_of_train[self.train_id_of] >= 0

    @cached_property
    def label_id_of_thing(self) -> np.ndarray:
        """int64 (T,): label id of every thing id."""
        return np.array([c.label_id for c in self.things], dtype=np.int64)

    @cached_property
    def colors(self) -> np.ndarray:
        """uint8 (256, 3): RGB colour of every train id; black for void."""
        lookup = np.zeros((256, 3), dtype=np.uint8)
        for c in self.classes:
            lookup[c.train_id] = c.color
        return lookup

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the table: shards made with another table are refused."""
        rows = [(c.name, c.label_id, c.train_id, c.thing_id) for c in self.classes]
        return hashlib.sha256(json.dumps([rows, self.label_names]).encode()).hexdigest()

    def unknown_ids(self, instance_ids: np.ndarray) -> list[int]:
        """The distinct ids of an integer map (any shape) that this dataset does not know."""
        values = np.unique(instance_ids).astype(np.int64)
        inside = (values >= 0) & (values < len(self.known_ids))
        inside[inside] = self.known_ids[values[inside]]
        return [int(v) for v in values[~inside]]

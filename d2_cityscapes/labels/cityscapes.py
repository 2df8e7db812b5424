"""The classes of Cityscapes, from the official ``cityscapesscripts.helpers.labels``."""

from __future__ import annotations

from cityscapesscripts.helpers.labels import labels as _official_labels

from d2_cityscapes.labels.table import VOID_TRAIN_ID, LabelClass, LabelTable

__all__ = ["CITYSCAPES"]


def _cityscapes() -> LabelTable:
    evaluated = sorted(
        (label for label in _official_labels if 0 <= label.trainId < VOID_TRAIN_ID),
        key=lambda label: label.trainId,
    )
    thing_ids = {label.name: i for i, label in enumerate(x for x in evaluated if x.hasInstances)}
    classes = [
        LabelClass(label.name, label.id, label.trainId, thing_ids.get(label.name), label.color)
        for label in evaluated
    ]
    names = tuple((label.id, label.name) for label in _official_labels if label.id >= 0)
    return LabelTable("cityscapes", tuple(classes), names)


CITYSCAPES = _cityscapes()

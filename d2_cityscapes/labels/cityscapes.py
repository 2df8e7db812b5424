"""The classes of Cityscapes.

Names, ids, instances and colours: the official ``cityscapesscripts.helpers.labels``, which nothing
here imports: it need not work, nor be there, to train or to evaluate. A test compares.
"""

from __future__ import annotations

from typing import NamedTuple

from d2_cityscapes.labels.table import VOID_TRAIN_ID, LabelClass, LabelTable

__all__ = ["CITYSCAPES", "CITYSCAPES_LABELS", "CityscapesLabel"]


class CityscapesLabel(NamedTuple):
    """A label as polygons have it.

    Attributes:
        label_id: 0..33 in the annotation files; -1 for what they leave out.
        train_id: 0..18 where it is evaluated, else 255 or -1.
        has_instances: whether each polygon is one instance.
        color: RGB, 0..255.
    """

    label_id: int
    train_id: int
    has_instances: bool
    color: tuple[int, int, int]


# By the names in *_gtFine_polygons.json.
CITYSCAPES_LABELS = {
    "unlabeled": CityscapesLabel(0, 255, False, (0, 0, 0)),
    "ego vehicle": CityscapesLabel(1, 255, False, (0, 0, 0)),
    "rectification border": CityscapesLabel(2, 255, False, (0, 0, 0)),
    "out of roi": CityscapesLabel(3, 255, False, (0, 0, 0)),
    "static": CityscapesLabel(4, 255, False, (0, 0, 0)),
    "dynamic": CityscapesLabel(5, 255, False, (111, 74, 0)),
    "ground": CityscapesLabel(6, 255, False, (81, 0, 81)),
    "road": CityscapesLabel(7, 0, False, (128, 64, 128)),
    "sidewalk": CityscapesLabel(8, 1, False, (244, 35, 232)),
    "parking": CityscapesLabel(9, 255, False, (250, 170, 160)),
    "rail track": CityscapesLabel(10, 255, False, (230, 150, 140)),
    "building": CityscapesLabel(11, 2, False, (70, 70, 70)),
    "wall": CityscapesLabel(12, 3, False, (102, 102, 156)),
    "fence": CityscapesLabel(13, 4, False, (190, 153, 153)),
    "guard rail": CityscapesLabel(14, 255, False, (180, 165, 180)),
    "bridge": CityscapesLabel(15, 255, False, (150, 100, 100)),
    "tunnel": CityscapesLabel(16, 255, False, (150, 120, 90)),
    "pole": CityscapesLabel(17, 5, False, (153, 153, 153)),
    "polegroup": CityscapesLabel(18, 255, False, (153, 153, 153)),
    "traffic light": CityscapesLabel(19, 6, False, (250, 170, 30)),
    "traffic sign": CityscapesLabel(20, 7, False, (220, 220, 0)),
    "vegetation": CityscapesLabel(21, 8, False, (107, 142, 35)),
    "terrain": CityscapesLabel(22, 9, False, (152, 251, 152)),
    "sky": CityscapesLabel(23, 10, False, (70, 130, 180)),
    "person": CityscapesLabel(24, 11, True, (220, 20, 60)),
    "rider": CityscapesLabel(25, 12, True, (255, 0, 0)),
    "car": CityscapesLabel(26, 13, True, (0, 0, 142)),
    "truck": CityscapesLabel(27, 14, True, (0, 0, 70)),
    "bus": CityscapesLabel(28, 15, True, (0, 60, 100)),
    "caravan": CityscapesLabel(29, 255, True, (0, 0, 90)),
    "trailer": CityscapesLabel(30, 255, True, (0, 0, 110)),
    "train": CityscapesLabel(31, 16, True, (0, 80, 100)),
    "motorcycle": CityscapesLabel(32, 17, True, (0, 0, 230)),
    "bicycle": CityscapesLabel(33, 18, True, (119, 11, 32)),
    "license plate": CityscapesLabel(-1, -1, False, (0, 0, 142)),
}


def _cityscapes() -> LabelTable:
    evaluated = sorted(
        (label.train_id, name, label)
        for name, label in CITYSCAPES_LABELS.items()
        if 0 <= label.train_id < VOID_TRAIN_ID
    )
    things = [name for _, name, label in evaluated if label.has_instances]
    classes = tuple(
        LabelClass(
            name,
            label.label_id,
            train_id,
            things.index(name) if label.has_instances else None,
            label.color,
        )
        for train_id, name, label in evaluated
    )
    names = ((label.label_id, name) for name, label in CITYSCAPES_LABELS.items())
    return LabelTable("cityscapes", classes, tuple(row for row in names if row[0] >= 0))


CITYSCAPES = _cityscapes()

"""The 26 classes of the Indian Driving Dataset at level 3 of its hierarchy: 17 stuff, 9 things.

Names, ids and colours: https://github.com/AutoNUE/public-code, helpers/anue_labels.py. Level 3 is
what the semantic and the panoptic benchmark evaluate. Where it joins labels (person and animal), a
class has the name and colour of the first that is evaluated, as in the official panoptic files.

The train id of a class is its official level3Id. There 0 is road and 255 void; its label id is
level3Id + 1, because 0 is void in instance ids.
"""

from __future__ import annotations

from typing import NamedTuple

from d2_cityscapes.labels.table import VOID_TRAIN_ID, LabelClass, LabelTable

__all__ = ["IDD", "IDD_LABELS", "IddLabel"]


class IddLabel(NamedTuple):
    """A label as polygons have it.

    Attributes:
        level3_id: 0..25; 255 for void.
        has_instances: whether each polygon is one instance.
        evaluated: whether the label can give its class the name.
        color: RGB, 0..255.
    """

    level3_id: int
    has_instances: bool
    evaluated: bool
    color: tuple[int, int, int]

    @property
    def label_id(self) -> int:
        """1..26; 0 for void."""
        return 0 if self.level3_id == VOID_TRAIN_ID else self.level3_id + 1


# By the names in *_gtFine_polygons.json.
IDD_LABELS = {
    "road": IddLabel(0, False, True, (128, 64, 128)),
    "parking": IddLabel(1, False, True, (250, 170, 160)),
    "drivable fallback": IddLabel(1, False, True, (81, 0, 81)),
    "sidewalk": IddLabel(2, False, True, (244, 35, 232)),
    "rail track": IddLabel(3, False, True, (230, 150, 140)),
    "non-drivable fallback": IddLabel(3, False, True, (152, 251, 152)),
    "person": IddLabel(4, True, True, (220, 20, 60)),
    "animal": IddLabel(4, True, False, (246, 198, 145)),
    "rider": IddLabel(5, True, True, (255, 0, 0)),
    "motorcycle": IddLabel(6, True, True, (0, 0, 230)),
    "bicycle": IddLabel(7, True, True, (119, 11, 32)),
    "autorickshaw": IddLabel(8, True, True, (255, 204, 54)),
    "car": IddLabel(9, True, True, (0, 0, 142)),
    "truck": IddLabel(10, True, True, (0, 0, 70)),
    "bus": IddLabel(11, True, True, (0, 60, 100)),
    "caravan": IddLabel(12, True, False, (0, 0, 90)),
    "trailer": IddLabel(12, True, False, (0, 0, 110)),
    "train": IddLabel(12, True, False, (0, 80, 100)),
    "vehicle fallback": IddLabel(12, True, True, (136, 143, 153)),
    "curb": IddLabel(13, False, True, (220, 190, 40)),
    "wall": IddLabel(14, False, True, (102, 102, 156)),
    "fence": IddLabel(15, False, True, (190, 153, 153)),
    "guard rail": IddLabel(16, False, True, (180, 165, 180)),
    "billboard": IddLabel(17, False, True, (174, 64, 67)),
    "traffic sign": IddLabel(18, False, True, (220, 220, 0)),
    "traffic light": IddLabel(19, False, True, (250, 170, 30)),
    "pole": IddLabel(20, False, True, (153, 153, 153)),
    "polegroup": IddLabel(20, False, True, (153, 153, 153)),
    "obs-str-bar-fallback": IddLabel(21, False, True, (169, 187, 214)),
    "building": IddLabel(22, False, True, (70, 70, 70)),
    "bridge": IddLabel(23, False, True, (150, 100, 100)),
    "tunnel": IddLabel(23, False, True, (150, 120, 90)),
    "vegetation": IddLabel(24, False, True, (107, 142, 35)),
    "sky": IddLabel(25, False, True, (70, 130, 180)),
    "fallback background": IddLabel(25, False, True, (169, 187, 214)),
    "unlabeled": IddLabel(255, False, False, (0, 0, 0)),
    "ego vehicle": IddLabel(255, False, False, (0, 0, 0)),
    "rectification border": IddLabel(255, False, False, (0, 0, 0)),
    "out of roi": IddLabel(255, False, False, (0, 0, 0)),
    "license plate": IddLabel(255, False, False, (0, 0, 142)),
}


def _idd() -> LabelTable:
    first: dict[int, tuple[str, IddLabel]] = {}
    for name, label in IDD_LABELS.items():
        if label.evaluated:
            first.setdefault(label.level3_id, (name, label))
    things = [i for i, (_, label) in sorted(first.items()) if label.has_instances]
    classes = tuple(
        LabelClass(name, label.label_id, i, things.index(i) if i in things else None, label.color)
        for i, (name, label) in sorted(first.items())
    )
    return LabelTable("idd", classes, ((0, "unlabeled"), *((c.label_id, c.name) for c in classes)))


IDD = _idd()

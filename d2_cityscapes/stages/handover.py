"""Weights of a stage that the next one cannot take as they are, made into what it begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from d2_cityscapes.convert import convert_file
from d2_cityscapes.convert.classes import convert_class_file
from d2_cityscapes.data.register import label_table_of
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.labels.record import class_differences, class_record
from d2_cityscapes.modeling.backbones.weights import uses_timm

__all__ = ["Handover", "find_handover"]

_DEEPLAB = "DeepLabV3Segmentor"  # in torchvision's names, unless its encoder is timm's


@dataclass(frozen=True)
class Handover:
    """A conversion between two stages, the same whenever it is made.

    Attributes:
        source: final weights of the stage before.
        tables: the classes of that stage and of the next one, for whose the heads are mapped; None
            for a DeepLabv3, whose body is handed on alone.
    """

    source: Path
    tables: tuple[LabelTable, LabelTable] | None

    @property
    def output(self) -> Path:
        """The weights that the next stage begins with."""
        return self.source.with_name("backbone.pth" if self.tables is None else "mapped.pth")

    def make(self) -> tuple[str, ...]:
        """Write `output`; lines that say what became of what."""
        if self.tables is None:
            return convert_file("torchvision-deeplab", self.source, self.output)
        before, now = self.tables
        return convert_class_file(self.source, self.output, source=before, target=now)


def find_handover(before: CfgNode, now: CfgNode, weights: Path) -> Handover | None:
    """What has to be done between two stages; None where weights are handed on as they are.

    Args:
        before, now: their configs.
        weights: the final ones of the stage before.

    Raises:
        D2CityscapesError: DATASETS.TRAIN of one is not registered or of several tables.
    """
    if _is_torchvisions(before) and not _is_torchvisions(now):
        return Handover(weights, None)
    old, new = (label_table_of(cfg.DATASETS.TRAIN) for cfg in (before, now))
    if class_differences(class_record(old), new):
        return Handover(weights, (old, new))
    return None


def _is_torchvisions(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == _DEEPLAB and not uses_timm(cfg)

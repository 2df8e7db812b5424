"""What a file of weights has to be for a model and a purpose, and what is said where it is not."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor, nn

from d2_cityscapes.engine.checkpoints.errors import CheckpointError
from d2_cityscapes.engine.checkpoints.load_report import LoadReport
from d2_cityscapes.errors import nearest
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.labels.record import CLASSES, class_differences
from d2_cityscapes.labels.rows import class_rows
from d2_cityscapes.modeling.anchors.clustering import AnchorError
from d2_cityscapes.modeling.anchors.generator import KMeansAnchorGenerator
from d2_cityscapes.modeling.anchors.record import (
    REMEDY,
    anchor_difference,
    describe_record,
    find_records,
    record_of_cells,
)

__all__ = ["Demands"]

logger = logging.getLogger(__name__)

_BACKBONE = ("backbone.", "network.model.pixel_level_module.encoder.")  # that of Mask2Former
_TORCHVISION = "layer1.0.conv1.weight"  # a name of torchvision's; Detectron2 has res2.0 there


@dataclass(frozen=True)
class Demands:
    """What is asked of a file.

    Attributes:
        model: takes the weights.
        path: of the file, for messages.
        purpose: "use" as it is, "start" a training, or "resume" one.
        exclude, table, other_anchors: as of the checkpointer.
        trained: ids of the parameters that the training moves at some time.
    """

    model: nn.Module
    path: str
    purpose: str
    exclude: Sequence[str]
    trained: Collection[int]
    table: LabelTable | None
    other_anchors: bool

    def check_anchors(self, weights: dict[str, Any], kept_out: Collection[str]) -> None:
        """Take the anchor records out of the weights, and hold them against the model's anchors.

        Where everything that has learned from the anchors is kept out, they may be any.

        Raises:
            AnchorError: other anchors.
        """
        records = {}
        for name in find_records(weights):
            module = name.removeprefix("module.").rpartition(".")[0]
            records[module] = torch.as_tensor(weights.pop(name))
        for module, generator in self.model.named_modules():
            if not isinstance(generator, DefaultAnchorGenerator):
                continue
            if module in records:
                around = self.model.get_submodule(module.rpartition(".")[0])
                learned = {f"{module.rpartition('.')[0]}.{n}" for n, _ in around.named_parameters()}
                if not learned.issubset(kept_out):
                    self._judge_record(records[module], generator)
            elif self.purpose == "use" and isinstance(generator, KMeansAnchorGenerator):
                logger.warning(
                    "%s does not tell the anchors that it was trained with; the model has %s",
                    self.path,
                    describe_record(record_of_cells(generator.cell_anchors)),
                )

    def _judge_record(self, record: Tensor, generator: DefaultAnchorGenerator) -> None:
        difference = anchor_difference(record, generator.cell_anchors)
        if difference and self.purpose == "start" and self.other_anchors:
            logger.warning("%s: %s, which it learns from here on", self.path, difference)
        elif difference:
            may = ""
            if self.purpose == "start":
                may = "; or, to learn new ones, MODEL.ANCHOR_GENERATOR.KMEANS.ALLOW_OTHER True"
            raise AnchorError(f"{self.path}: {difference}; {REMEDY}{may}")

    def kept_out(self, weights: Mapping[str, Any]) -> list[str]:
        """Names of the model that `exclude` keeps as they are, where a training begins.

        Raises:
            CheckpointError: a pattern that matches nothing in model and file.
        """
        if self.purpose != "start":
            return []
        state = self.model.state_dict()
        found: set[str] = set()
        for pattern in self.exclude:
            matches = fnmatch.filter(state, pattern)
            if not matches and not fnmatch.filter(weights, pattern):
                hint = nearest(pattern.strip("*."), state, cutoff=0.4)
                raise CheckpointError(
                    f"MODEL.WEIGHTS_EXCLUDE: {pattern!r} matches no parameter or buffer{hint}"
                )
            found.update(matches)
        return [name for name in state if name in found]

    def check_report(self, report: LoadReport, differences: Mapping[str, str]) -> None:
        """Hold what has been loaded against what the purpose asks for.

        Args:
            report: of the load.
            differences: from `check_classes`.

        Raises:
            CheckpointError: another architecture, parts that are missing or too many, rows of
                predictors that mean other classes.
        """
        state = self.model.state_dict()
        self._check_architecture(report, state)
        self._check_complete(report)
        self._check_rows(differences, report, state)

    def _check_architecture(self, report: LoadReport, state: Mapping[str, Tensor]) -> None:
        """Refuse weights that fit less than half of the backbone, or model where it has none."""
        asked = {*report.loaded, *report.skipped, *report.missing}
        asked = {name for name in asked if name.startswith(_BACKBONE)} or asked
        total = sum(state[name].numel() for name in asked)
        fitting = sum(state[name].numel() for name in asked.intersection(report.loaded))
        if 2 * fitting >= total:
            return
        hint = _conversion(report.unused)
        part = "backbone" if any(name.startswith(_BACKBONE) for name in asked) else "model"
        raise CheckpointError(
            f"{self.path}: weights of another architecture, which fit {fitting / total:.0%} of "
            f"the {part}{hint}"
        )

    def _check_complete(self, report: LoadReport) -> None:
        lost = report.initialised
        if self.purpose == "start":
            never_trained = self._never_trained()
            lost = tuple(name for name in lost if name in never_trained)
            why = (
                "nothing would ever train: give weights that have it, or let it train "
                "(MODEL.FREEZE, MODEL.BACKBONE.FREEZE_AT, norms other than FrozenBN)"
            )
        elif self.purpose == "resume":
            why = "the model has: resume with the config.yaml of that training"
        else:
            why = "the model has: give complete weights, and the config.yaml of their training"
        if lost:
            raise CheckpointError(
                f"{self.path}: {report.summary()}; without {report.modules(lost)}, which {why}"
            )
        self._check_surplus(report)

    def _check_surplus(self, report: LoadReport) -> None:
        """Refuse what has no place in the model: the rest would do something else without it."""
        surplus, remedy = report.surplus, "use the config.yaml of their training"
        if self.purpose == "resume":
            surplus, remedy = report.unused, "resume with the config.yaml of that training"
        elif self.purpose == "start":
            kept_out = [re.compile(fnmatch.translate(pattern)) for pattern in self.exclude]
            surplus = tuple(n for n in surplus if not any(p.match(n) for p in kept_out))
            remedy += ", or keep that module out by MODEL.WEIGHTS_EXCLUDE"
        if surplus:
            raise CheckpointError(
                f"{self.path}: has {report.modules(surplus)}, which the model lacks: {remedy}"
            )

    def check_classes(self, checkpoint: Mapping[str, Any]) -> dict[str, str]:
        """See `class_differences`; refused but where a training begins, which may need none.

        Raises:
            CheckpointError: weights of other classes.
        """
        if self.table is None:
            return {}
        differences = class_differences(checkpoint.get(CLASSES), self.table)
        if differences and self.purpose != "start":
            raise CheckpointError(
                f"{self.path}: {next(iter(differences.values()))}: take data with the classes of "
                "that training"
            )
        return differences

    def _check_rows(
        self, differences: Mapping[str, str], report: LoadReport, state: Mapping[str, Tensor]
    ) -> None:
        """Refuse to begin with rows of predictors that mean other classes."""
        for kind, difference in differences.items():
            rows = _class_rows(kind, report.loaded, state, self.table)
            if rows:
                raise CheckpointError(
                    f"{self.path}: {difference}: keep out what predicts the former, "
                    f"MODEL.WEIGHTS_EXCLUDE {rows}"
                )

    def _never_trained(self) -> set[str]:
        """Names of what the optimizer leaves alone, with the statistics of such norms."""
        names = set()
        for module, layer in self.model.named_modules():
            own = dict(layer.named_parameters(module, recurse=False))
            fixed = {name for name, tensor in own.items() if id(tensor) not in self.trained}
            names |= fixed
            if len(fixed) == len(own):  # none at all in FrozenBatchNorm2d
                names.update(name for name, _ in layer.named_buffers(module, recurse=False))
        return names


def _conversion(unused: Collection[str]) -> str:
    """What makes weights with a ResNet in torchvision's names fit; "" for others."""
    if not any(name.endswith(_TORCHVISION) for name in unused):
        return ""
    kinds = {"backbone.body.": "torchvision-rcnn", "roi_head.bbox_head.": "mmdetection"}
    found = (kind for part, kind in kinds.items() if any(part in name for name in unused))
    kind = next(found, "torchvision-deeplab")
    return f"; torchvision's layout: run d2c convert {kind} first"


def _class_rows(
    kind: str, names: Iterable[str], state: Mapping[str, Tensor], table: LabelTable | None
) -> list[str]:
    """Those of the tensors that have rows for each class of a kind.

    A layer that is the same for all classes has another number of them.
    """
    if table is None:
        return []
    count = len(table.things if kind == "things" else table.classes)
    found = {name for name, rows in class_rows(state, kind) if rows.fits(state[name], count)}
    return [name for name in names if name in found]

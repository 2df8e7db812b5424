"""Loading weights with a report of what fitted, and refusing what cannot be meant."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor, nn

from d2_cityscapes.engine.checkpoints.errors import CheckpointError
from d2_cityscapes.engine.checkpoints.fetching import fetch_weights
from d2_cityscapes.engine.checkpoints.load_report import LoadReport, shortened
from d2_cityscapes.engine.checkpoints.saving import (
    save_checkpoint,
    save_weights,
    tag_checkpoint,
)
from d2_cityscapes.errors import nearest
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.labels.record import CLASSES, class_differences, class_record
from d2_cityscapes.modeling.anchors.clustering import AnchorError
from d2_cityscapes.modeling.anchors.generator import KMeansAnchorGenerator
from d2_cityscapes.modeling.anchors.record import (
    REMEDY,
    anchor_difference,
    describe_record,
    find_records,
    record_of_cells,
)
from d2_cityscapes.run_folder import LAST_CHECKPOINT
from d2_cityscapes.tensor_files import TensorFileError, read_tensor_file

__all__ = ["CheckpointError", "Checkpointer", "last_checkpoint"]

logger = logging.getLogger(__name__)

_BACKBONE = "backbone."
_COUNTER = ".num_batches_tracked"  # of batch norms: no weight, and often left out of files
_TORCHVISION = "layer1.0.conv1.weight"  # a name of torchvision's; Detectron2 has res2.0 there


def last_checkpoint(folder: str) -> str:
    """The file to resume from, by the name in the folder's last_checkpoint; "" without one.

    Raises:
        CheckpointError: it names none, or one of another folder.
    """
    record = Path(folder) / LAST_CHECKPOINT
    try:
        path = Path(folder) / record.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{record}: names no file; delete it") from error
    if path.parent.absolute() != Path(folder).absolute():
        raise CheckpointError(f"{record}: names {path}, which is not in its folder")
    return str(path)


class Checkpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that says what it loaded, and does not load half a model.

    `load` is for models that are used as they are: everything has to be in the file. So it has when
    `resume_or_load` resumes, together with the states of ``checkpointables``. Where that begins a
    training from weights, parts may be missing, which is how a stage takes over from the one before
    it; but not most of the backbone, nor what nothing would ever train. Whole heads more than the
    model has are left out with a warning; more inside of a module that it has, such as the blocks
    of a deeper body, is another network.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        exclude: Sequence[str] = (),
        trained: Iterable[nn.Parameter] | None = None,
        table: LabelTable | None = None,
        other_anchors: bool = False,
        **checkpointables: Any,
    ):
        """
        Args:
            model: a model, data-parallel or not.
            save_dir: folder of checkpoints.
            exclude: cfg.MODEL.WEIGHTS_EXCLUDE, for weights that a training begins from.
            trained: what the training moves at some time; None for all that requires gradients.
            table: the classes of the data at hand, which are noted down in what is saved, and held
                against those of what is loaded; None for neither.
            other_anchors: cfg.MODEL.ANCHOR_GENERATOR.KMEANS.ALLOW_OTHER, for weights that a
                training begins from.
            checkpointables: as in `DetectionCheckpointer`.
        """
        super().__init__(model, save_dir, **checkpointables)
        self._exclude = tuple(exclude)
        if trained is None:
            trained = (p for p in self.model.parameters() if p.requires_grad)
        self._trained = {id(parameter) for parameter in trained}
        self._table = table
        self._other_anchors = other_anchors
        self._path = ""  # of the file that is being loaded, for messages
        self._query = ""  # behind it
        self._purpose = "use"  # or "start" or "resume" a training

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As `DetectionCheckpointer`, with the demands on the file that the class describes."""
        self._purpose = "resume" if resume and self.has_checkpoint() else "start"
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._purpose = "use"

    def get_checkpoint_file(self) -> str:
        """See `last_checkpoint`."""
        return last_checkpoint(self.save_dir)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file, log what fitted, and check that it is enough.

        Nothing in the file is run as code, see `d2_cityscapes.tensor_files`.

        Raises:
            CheckpointError: not there, unreadable, of another architecture, incomplete, trained
                for other classes, or an exclude pattern that matches nothing.
            AnchorError: trained with other anchors.
        """
        self._path = path
        return super().load(self._local_file() if path else path, *args, **kwargs)

    def save(self, name: str, **extra: Any) -> None:
        save_checkpoint(self, name, **self._class_record(), **extra)

    def save_weights(self, path: Path) -> None:
        """Write the weights alone, to use or to start from."""
        save_weights(path, self.model.state_dict(), **self._class_record())

    def _class_record(self) -> dict[str, Any]:
        return {} if self._table is None else {CLASSES: class_record(self._table)}

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        tag_checkpoint(self, last_filename_basename)

    def _local_file(self) -> str:
        address, _, self._query = self._path.partition("?")
        local = fetch_weights(address)
        if not os.path.isfile(local):
            resumes = self._purpose == "resume"
            named = f", though {self.save_dir}/{LAST_CHECKPOINT} names it" if resumes else ""
            raise CheckpointError(f"{self._path}: no such file{named}")
        return local

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            content = read_tensor_file(filename)
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be read ({error.strerror})") from error
        except TensorFileError as error:
            raise CheckpointError(str(error)) from error
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise CheckpointError(f"{self._path}: cannot be read as weights (it holds a {kind})")
        checkpoint = _as_checkpoint(content, os.path.splitext(filename)[1])
        if self._query == "matching_heuristics=True":  # which Detectron2 after 0.6 knows
            checkpoint["matching_heuristics"] = True
        weights = checkpoint["model"]
        if not isinstance(weights, dict):
            raise CheckpointError(f"{self._path}: holds a {type(weights).__name__}, not weights")
        other = [str(name) for name, x in weights.items() if not isinstance(x, Tensor | np.ndarray)]
        if other:
            raise CheckpointError(
                f"{self._path}: neither a state dict nor one under the key 'model'; it holds "
                f"{shortened(other)}"
            )
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        weights = checkpoint["model"]
        torchvision = any(name.endswith(_TORCHVISION) for name in weights)
        if self._purpose == "resume":
            self._check_states(checkpoint)
        differences = self._class_differences(checkpoint)
        state = self.model.state_dict()
        excluded = self._excluded(state, weights) if self._purpose == "start" else []
        self._judge_anchors(weights, excluded)
        before = {name: state[name].clone() for name in excluded}
        try:
            incompatible = super()._load_model(checkpoint)
        except (ValueError, KeyError, AssertionError) as error:  # of names matched by heuristics
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{self._path}: cannot be matched with the model ({reason})"
            ) from error
        for name, tensor in before.items():
            state[name].copy_(tensor)
        report = _make_report(state, excluded, incompatible)
        self._log(report)
        self._check_architecture(report, state, torchvision)
        self._check_complete(report)
        self._check_rows(differences, report, state)
        return incompatible

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        """The report has said it."""

    def _check_states(self, checkpoint: Mapping[str, Any]) -> None:
        lacking = [name for name in self.checkpointables if name not in checkpoint]
        if lacking:
            raise CheckpointError(
                f"{self._path}: cannot be resumed from, as it has weights but no state of "
                f"{', '.join(lacking)}: give it as MODEL.WEIGHTS, with a new OUTPUT_DIR"
            )

    def _judge_anchors(self, weights: dict[str, Any], excluded: Collection[str]) -> None:
        """Take the anchor records out of the weights, and hold them against the model's anchors.

        Where everything that has learned from the anchors is kept out, they may be any.
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
                if not learned.issubset(excluded):
                    self._judge_record(records[module], generator)
            elif self._purpose == "use" and isinstance(generator, KMeansAnchorGenerator):
                logger.warning(
                    "%s does not tell the anchors that it was trained with; the model has %s",
                    self._path,
                    describe_record(record_of_cells(generator.cell_anchors)),
                )

    def _judge_record(self, record: Tensor, generator: DefaultAnchorGenerator) -> None:
        difference = anchor_difference(record, generator.cell_anchors)
        if difference and self._purpose == "start" and self._other_anchors:
            logger.warning("%s: %s, which it learns from here on", self._path, difference)
        elif difference:
            may = ""
            if self._purpose == "start":
                may = "; or, to learn new ones, MODEL.ANCHOR_GENERATOR.KMEANS.ALLOW_OTHER True"
            raise AnchorError(f"{self._path}: {difference}; {REMEDY}{may}")

    def _excluded(self, state: Mapping[str, Tensor], weights: Mapping[str, Any]) -> list[str]:
        found: set[str] = set()
        for pattern in self._exclude:
            matches = fnmatch.filter(state, pattern)
            if not matches and not fnmatch.filter(weights, pattern):
                hint = nearest(pattern.strip("*."), state, cutoff=0.4)
                raise CheckpointError(
                    f"MODEL.WEIGHTS_EXCLUDE: {pattern!r} matches no parameter or buffer{hint}"
                )
            found.update(matches)
        return [name for name in state if name in found]

    def _log(self, report: LoadReport) -> None:
        logger.info("%s: %s", self._path, report.summary())
        lines = (
            (logging.INFO, "kept out by MODEL.WEIGHTS_EXCLUDE", report.excluded),
            (
                logging.WARNING,
                "not loaded, so as initialised (random)",
                (*report.skipped, *report.missing),
            ),
            (logging.WARNING, "in the file, but not in the model", report.unused),
        )
        for level, what, names in lines:
            if names:
                logger.log(level, "%s: %s", what, report.modules(names))

    def _check_architecture(
        self, report: LoadReport, state: Mapping[str, Tensor], torchvision: bool
    ) -> None:
        """Refuse weights that fit less than half of the backbone, or model where it has none."""
        asked = {*report.loaded, *report.skipped, *report.missing}
        asked = {name for name in asked if name.startswith(_BACKBONE)} or asked
        total = sum(state[name].numel() for name in asked)
        fitting = sum(state[name].numel() for name in asked.intersection(report.loaded))
        if 2 * fitting >= total:
            return
        hint = ""
        if torchvision:
            hint = "; torchvision's layout: run tools/convert_weights.py torchvision-deeplab first"
        part = "backbone" if any(name.startswith(_BACKBONE) for name in asked) else "model"
        raise CheckpointError(
            f"{self._path}: weights of another architecture, which fit {fitting / total:.0%} of "
            f"the {part}{hint}"
        )

    def _check_complete(self, report: LoadReport) -> None:
        lost = report.initialised
        if self._purpose == "start":
            never_trained = self._never_trained()
            lost = tuple(name for name in lost if name in never_trained)
            why = (
                "nothing would ever train: give weights that have it, or let it train "
                "(MODEL.FREEZE, MODEL.BACKBONE.FREEZE_AT, norms other than FrozenBN)"
            )
        elif self._purpose == "resume":
            why = "the model has: resume with the config.yaml of that training"
        else:
            why = "the model has: give complete weights, and the config.yaml of their training"
        if lost:
            raise CheckpointError(
                f"{self._path}: {report.summary()}; without {report.modules(lost)}, which {why}"
            )
        self._check_surplus(report)

    def _check_surplus(self, report: LoadReport) -> None:
        """Refuse what has no place in the model: the rest would do something else without it."""
        surplus, remedy = report.surplus, "use the config.yaml of their training"
        if self._purpose == "resume":
            surplus, remedy = report.unused, "resume with the config.yaml of that training"
        elif self._purpose == "start":
            kept_out = [re.compile(fnmatch.translate(pattern)) for pattern in self._exclude]
            surplus = tuple(n for n in surplus if not any(p.match(n) for p in kept_out))
            remedy += ", or keep that module out by MODEL.WEIGHTS_EXCLUDE"
        if surplus:
            raise CheckpointError(
                f"{self._path}: has {report.modules(surplus)}, which the model lacks: {remedy}"
            )

    def _class_differences(self, checkpoint: Mapping[str, Any]) -> dict[str, str]:
        """See `class_differences`; refused but where a training begins, which may need none."""
        if self._table is None:
            return {}
        differences = class_differences(checkpoint.get(CLASSES), self._table)
        if differences and self._purpose != "start":
            raise CheckpointError(
                f"{self._path}: {next(iter(differences.values()))}: take data with the classes of "
                "that training"
            )
        return differences

    def _check_rows(
        self, differences: Mapping[str, str], report: LoadReport, state: Mapping[str, Tensor]
    ) -> None:
        """Refuse to begin with rows of predictors that mean other classes."""
        for kind, difference in differences.items():
            rows = _class_rows(kind, report.loaded, state, self._table)
            if rows:
                raise CheckpointError(
                    f"{self._path}: {difference}: keep out what predicts the former, "
                    f"MODEL.WEIGHTS_EXCLUDE {rows}"
                )

    def _never_trained(self) -> set[str]:
        """Names of what the optimizer leaves alone, with the statistics of such norms."""
        names = set()
        for module, layer in self.model.named_modules():
            own = dict(layer.named_parameters(module, recurse=False))
            fixed = {name for name, tensor in own.items() if id(tensor) not in self._trained}
            names |= fixed
            if len(fixed) == len(own):  # none at all in FrozenBatchNorm2d
                names.update(name for name, _ in layer.named_buffers(module, recurse=False))
        return names


def _as_checkpoint(content: dict[str, Any], suffix: str) -> dict[str, Any]:
    """Weights of any code base that Detectron2 reads, in the form of its own checkpoints."""
    if suffix == ".pkl" and not {"model", "__author__"} <= content.keys():
        blobs = content.get("blobs", content)  # Caffe2's; of an ImageNet model it is the whole
        weights = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
    if suffix == ".pyth":
        weights = content.get("model_state", content)
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
    return content if "model" in content else {"model": content}


def _class_rows(
    kind: str, names: Iterable[str], state: Mapping[str, Tensor], table: LabelTable | None
) -> list[str]:
    """Those of the tensors that have rows for each class of a kind.

    A layer that is the same for all classes has another number of them.
    """
    if table is None:
        return []
    things, classes = len(table.things), len(table.classes)
    semantic = ("sem_seg_head.predictor.*", "classifier.*", "aux_classifier.*")
    rows: dict[str, tuple[int, ...]] = dict.fromkeys(semantic, (classes, classes + 1))  # void
    if kind == "things":
        rows = {
            "roi_heads.box_predictor*.cls_score.*": (things + 1,),  # background
            "roi_heads.box_predictor*.bbox_pred.*": (4 * things,),
            "roi_heads.mask_head.predictor.*": (things,),
        }
    return [
        name
        for name in names
        if any(fnmatch.fnmatch(name, p) and len(state[name]) in rows[p] for p in rows)
    ]


def _make_report(
    state: Mapping[str, Tensor], excluded: Sequence[str], incompatible: _IncompatibleKeys
) -> LoadReport:
    """From what fvcore found incompatible, whose missing keys contain those of other shapes."""
    records, out = find_records(state), set(excluded)
    names = [name for name in state if not name.endswith(_COUNTER) and name not in records]
    skipped = {
        name: (tuple(file), tuple(model))
        for name, file, model in incompatible.incorrect_shapes
        if name not in out
    }
    missing = set(incompatible.missing_keys).difference(out, skipped)
    absent = {*missing, *skipped, *out}
    return LoadReport(
        loaded=tuple(name for name in names if name not in absent),
        skipped=skipped,
        missing=tuple(name for name in names if name in missing),
        excluded=tuple(name for name in names if name in out),
        unused=tuple(n for n in incompatible.unexpected_keys if not n.endswith(_COUNTER)),
    )

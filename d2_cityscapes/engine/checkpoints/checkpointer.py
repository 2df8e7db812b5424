"""Loading weights with a report of what fitted, and refusing what cannot be meant."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor, nn

from d2_cityscapes.engine.checkpoints.demands import Demands
from d2_cityscapes.engine.checkpoints.errors import CheckpointError
from d2_cityscapes.engine.checkpoints.fetching import fetch_weights
from d2_cityscapes.engine.checkpoints.load_report import LoadReport, make_report, shortened
from d2_cityscapes.engine.checkpoints.saving import (
    save_checkpoint,
    save_portable,
    tag_checkpoint,
)
from d2_cityscapes.engine.checkpoints.weights_file import (
    HEURISTICS,
    About,
    as_checkpoint,
    read_weights_file,
    write_weights_file,
)
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.labels.record import CLASSES, class_record, mapped_lines
from d2_cityscapes.modeling.universal.hub import hub_classes, hub_config, hub_weights, is_hub
from d2_cityscapes.modeling.universal.segmentor import UniversalSegmentor
from d2_cityscapes.run_folder import FINAL, LAST_CHECKPOINT
from d2_cityscapes.tensor_files import TensorFileError

__all__ = ["CheckpointError", "Checkpointer", "last_checkpoint"]

logger = logging.getLogger(__name__)


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
        about: About | None = None,
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
            about: what final weights in ``.safetensors`` tell beside the classes of `table`.
            checkpointables: as in `DetectionCheckpointer`.
        """
        super().__init__(model, save_dir, **checkpointables)
        self._exclude = tuple(exclude)
        if trained is None:
            trained = (p for p in self.model.parameters() if p.requires_grad)
        self._trained = {id(parameter) for parameter in trained}
        self._table = table
        self._other_anchors = other_anchors
        record = None if table is None else class_record(table)
        self._about = dataclasses.replace(about or About(), classes=record)
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
        """As `DetectionCheckpointer`; the final weights as ``.safetensors`` beside, too."""
        save_checkpoint(self, name, **self._about.beside(), **extra)
        path = Path(self.save_dir) / f"{name}.pth"
        if path.name == FINAL and self.save_dir:
            self.save_portable(path)

    def save_weights(self, path: Path) -> None:
        """Write the weights alone, to use or to start from, in both formats."""
        write_weights_file(path, self.model.state_dict(), self._about)
        self.save_portable(path)

    def save_portable(self, path: Path) -> None:
        """See `d2_cityscapes.engine.checkpoints.saving.save_portable`."""
        save_portable(self, path, self._about)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        tag_checkpoint(self, last_filename_basename)

    def _local_file(self) -> str:
        if self._of_hub():
            return str(hub_config(self._path))
        address, _, self._query = self._path.partition("?")
        local = fetch_weights(address)
        if not os.path.isfile(local):
            resumes = self._purpose == "resume"
            named = f", though {self.save_dir}/{LAST_CHECKPOINT} names it" if resumes else ""
            raise CheckpointError(f"{self._path}: no such file{named}")
        return local

    def _of_hub(self) -> bool:
        return isinstance(self.model, UniversalSegmentor) and is_hub(self._path)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if self._of_hub():
            folder = Path(filename).parent
            weights = hub_weights(folder, self.model.network)
            return {"model": weights, CLASSES: hub_classes(folder)}
        try:
            content = read_weights_file(filename)
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be read ({error.strerror})") from error
        except TensorFileError as error:
            raise CheckpointError(str(error)) from error
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise CheckpointError(f"{self._path}: cannot be read as weights (it holds a {kind})")
        checkpoint = as_checkpoint(content, os.path.splitext(filename)[1])
        if self._query == "matching_heuristics=True":  # which Detectron2 after 0.6 knows
            checkpoint[HEURISTICS] = True
        weights = checkpoint["model"]
        if not isinstance(weights, dict):
            raise CheckpointError(f"{self._path}: holds a {type(weights).__name__}, not weights")
        other = [str(name) for name, x in weights.items() if not isinstance(x, Tensor | np.ndarray)]
        if other:
            hint = "; of mmdetection or seamseg: run d2c convert first"
            raise CheckpointError(
                f"{self._path}: neither a state dict nor one under the key 'model'; it holds "
                f"{shortened(other)}{hint if 'state_dict' in other else ''}"
            )
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        weights = checkpoint["model"]
        if self._purpose == "resume":
            self._check_states(checkpoint)
        demands = self._demands()
        differences = demands.check_classes(checkpoint)
        state = self.model.state_dict()
        excluded = demands.kept_out(weights)
        demands.check_anchors(weights, excluded)
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
        report = make_report(state, excluded, incompatible)
        self._log(report)
        for line in mapped_lines(checkpoint.get(CLASSES)):
            logger.info("%s: %s", self._path, line)
        demands.check_report(report, differences)
        return incompatible

    def _demands(self) -> Demands:
        return Demands(
            self.model,
            self._path,
            self._purpose,
            exclude=self._exclude,
            trained=self._trained,
            table=self._table,
            other_anchors=self._other_anchors,
        )

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        """The report has said it."""

    def _check_states(self, checkpoint: Mapping[str, Any]) -> None:
        lacking = [name for name in self.checkpointables if name not in checkpoint]
        if lacking:
            raise CheckpointError(
                f"{self._path}: cannot be resumed from, as it has weights but no state of "
                f"{', '.join(lacking)}: give it as MODEL.WEIGHTS, with a new OUTPUT_DIR"
            )

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

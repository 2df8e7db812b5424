"""One folder for each trial: its config, what it shall do, and all that it leaves."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import check_folder as check_writable
from d2_cityscapes.files import write_atomically, write_json
from d2_cityscapes.run_folder import CONFIG, LAST_CHECKPOINT
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.space.plan import Objective
from d2_cityscapes.search.trials.process import Outcome, read_outcome

__all__ = [
    "TrialFolders",
    "TrialJob",
    "check_folder",
    "make_folder",
    "read_job",
    "remove_checkpoints",
    "write_job",
]

_JOB = "trial.json"
_SEARCH = "search.json"


@dataclass(frozen=True)
class TrialJob:
    """What the process of a trial does, beside its config.

    Attributes:
        study: id of the study, see `describe`.
        number: of the trial.
        values: name -> sampled value, all of them in the config.
        objective: see there.
        period: iterations between two reports.
    """

    study: str
    number: int
    values: Mapping[str, Any]
    objective: Objective
    period: int


class TrialFolders:
    """The folders of a study's trials on this machine: trial_0007 and so on."""

    def __init__(self, root: Path, study: str) -> None:
        """
        Args:
            root: where they are.
            study: its id.

        Raises:
            SearchError: the folder holds trials of another study.
        """
        self.root = root
        self._study = study
        check_folder(root, study)
        holder = root / _SEARCH
        if not holder.is_file():
            write_json(holder, {"study": study})

    def path(self, number: int) -> Path:
        return self.root / f"trial_{number:04d}"

    def find_outcome(self, number: int) -> Outcome | None:
        """What a trial of this study left here; None for nothing."""
        return read_outcome(self.path(number)) if self._holds(self.path(number), number) else None

    def prepare(self, job: TrialJob, cfg: CfgNode, *, continues: tuple[int, ...] = ()) -> Path:
        """Make the folder of a trial ready, with config.yaml.

        Args:
            job: of the trial.
            cfg: with this folder as OUTPUT_DIR.
            continues: trials whose checkpoints it goes on from: the last one that was here.
        """
        folder = self.path(job.number)
        for number in reversed(continues):
            if not folder.exists() and self._holds(self.path(number), number):
                os.rename(self.path(number), folder)
        write_job(folder, job, cfg)
        return folder

    def _holds(self, folder: Path, number: int) -> bool:
        try:
            job = read_job(folder)
        except SearchError:
            return False
        return (job.study, job.number) == (self._study, number)


def check_folder(root: Path, study: str | None) -> None:
    """Refuse a folder that cannot take the trials of a study; nothing is created.

    Args:
        root: which need not be there.
        study: its id; None for one that is yet to be made.

    Raises:
        SearchError: it holds trials of another study, or cannot be written.
    """
    try:
        check_writable(root)
    except D2CityscapesError as error:
        raise SearchError(f"--output-dir {error}") from error
    holder = root / _SEARCH
    if holder.is_file() and _study_of(holder) != study:
        raise SearchError(
            f"{root}: holds the trials of another study; name another --output-dir, or its "
            "--storage and --study-name"
        )


def _study_of(holder: Path) -> str | None:
    try:
        return json.loads(holder.read_text())["study"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SearchError(
            f"{holder}: does not say whose trials these are ({error}); name another --output-dir"
        ) from error


def make_folder(root: Path) -> None:
    """Make the folder of a search.

    Raises:
        SearchError: the disk refused.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SearchError(f"--output-dir {root}: cannot be made ({error.strerror})") from error


def write_job(folder: Path, job: TrialJob, cfg: CfgNode) -> None:
    """What the process of a trial reads: config.yaml and trial.json."""
    write_atomically(folder / CONFIG, [cfg.dump().encode()])
    write_json(folder / _JOB, asdict(job))


def remove_checkpoints(folder: Path) -> None:
    """Delete what a trial goes on from, once it has ended."""
    weights = folder.glob("model_*.pth"), folder.glob("model_*.safetensors")
    for path in (*itertools.chain(*weights), folder / LAST_CHECKPOINT):
        path.unlink(missing_ok=True)


def read_job(folder: Path) -> TrialJob:
    """The job of a trial's folder.

    Raises:
        SearchError: there is none.
    """
    try:
        fields = json.loads((folder / _JOB).read_text())
        return TrialJob(**fields | {"objective": Objective(**fields["objective"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SearchError(f"{folder}: not the folder of a trial ({error})") from error

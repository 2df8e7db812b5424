"""An export held against its model on real pictures, and scored as the model is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from d2_cityscapes.data.register import has_truth, label_table_of, not_registered
from d2_cityscapes.engine.prediction.pictures import read_picture
from d2_cityscapes.evaluation.evaluators import ShardEvaluators, build_evaluator
from d2_cityscapes.evaluation.results import ResultRow
from d2_cityscapes.export.agreement import SCORES, Agreement
from d2_cityscapes.export.arrays import as_output
from d2_cityscapes.export.kinds import ExportError
from d2_cityscapes.export.run import load
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.shards.reader import open_shard

__all__ = ["Comparison", "Picture", "compare", "pictures_of", "score_export", "test_pictures"]

# The one number of each task that two models are compared by.
_MEANS = {
    "bbox": "AP", "segm": "AP", "segm_cityscapes": "AP", "sem_seg": "mIoU", "panoptic_seg": "PQ",
}  # fmt: skip

Run = Callable[[np.ndarray], dict[str, Any]]


@dataclass(frozen=True)
class Picture:
    """A picture to compare on, read when it is its turn.

    Attributes:
        name: for errors.
        read: gives (H, W, 3) uint8 RGB.
        entry: of its dataset, where it is of one that can be scored.
    """

    name: str
    read: Callable[[], np.ndarray]
    entry: dict[str, Any] | None = None


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        agreement: of the outputs.
        scores: (dataset, task, metric, percent of the model, percent of the export), where there
            was truth.
    """

    agreement: Agreement
    scores: tuple[tuple[str, str, str, float | None, float | None], ...]

    def problems(self) -> list[str]:
        """What is beyond the tolerances, in words."""
        return self.agreement.problems() + [
            f"{task} {metric} on {dataset}: {model:.2f} of the model, {own:.2f} of the export"
            for dataset, task, metric, model, own in self.scores
            if model is not None and own is not None and abs(model - own) > SCORES
        ]

    def lines(self) -> list[str]:
        found = self.agreement.lines()
        for dataset, task, metric, *values in self.scores:
            model, own = ("-" if value is None else f"{value:.3f}" for value in values)
            found.append(f"{dataset}, {task} {metric}: {model} of the model, {own} of the export")
        return found


def test_pictures(cfg: CfgNode, most: int, size: tuple[int, int] | None = None) -> list[Picture]:
    """Pictures of DATASETS.TEST, as many of each, evenly spread.

    Args:
        cfg: with the datasets.
        most: pictures.
        size: (H, W) of those that are meant; None for all.

    Raises:
        ExportError: there is no such dataset, or no picture of that size in it.
        ShardError: its shards are missing or damaged.
    """
    if not cfg.DATASETS.TEST:
        raise ExportError("DATASETS.TEST is empty: name pictures to compare on by --pictures")
    for name in cfg.DATASETS.TEST:
        if name not in DatasetCatalog.list():
            raise ExportError(not_registered(name))
    table = label_table_of(cfg.DATASETS.TEST)
    found = []
    for name in cfg.DATASETS.TEST:
        entries = DatasetCatalog.get(name)
        if size is not None:
            entries = [entry for entry in entries if (entry["height"], entry["width"]) == size]
        number = min(len(entries), -(-most // len(cfg.DATASETS.TEST)))
        for k in range(number):
            entry = {**entries[k * len(entries) // number], "dataset": name}
            found.append(Picture(entry["image_id"], partial(_stored, entry, table), entry))
    if not found:
        raise ExportError(
            f"DATASETS.TEST {', '.join(cfg.DATASETS.TEST)}: no picture"
            f"{'' if size is None else f' of --size {size[0]} {size[1]}'} to compare on; name some "
            "by --pictures"
        )
    return found


def pictures_of(paths: Sequence[Path], size: tuple[int, int] | None = None) -> list[Picture]:
    """Pictures of files, which are all of `size` (H, W) where that is given.

    Raises:
        PictureError: one that is missing or damaged.
        ExportError: one of another size.
    """
    for path in paths:
        own = read_picture(path).shape[:2]
        if size is not None and own != size:
            raise ExportError(f"{path}: {own} (H, W) pixels, not {size} of --size; leave it out")
    return [Picture(str(path), partial(read_picture, path)) for path in paths]


def _stored(entry: dict[str, Any], table: LabelTable) -> np.ndarray:
    pixels = open_shard(entry["shard"], table).image(entry["index"])
    return np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0))


def compare(cfg: CfgNode, model: Run, export: Run, pictures: Sequence[Picture]) -> Comparison:
    """Run both on each picture, hold the outputs against each other, and score both.

    Args:
        cfg: of the model.
        model, export: from (H, W, 3) uint8 RGB to what run.py gives.
        pictures: to run on.
    """
    agreement, sides = Agreement(), (_Scores(cfg), _Scores(cfg))
    for picture in tqdm(pictures, desc="comparing", unit="image"):
        image = picture.read()
        found = [run(image) for run in (model, export)]
        agreement.add(*found)
        for side, own in zip(sides, found, strict=True):
            side.process(picture, own, image.shape[:2])
    model_rows, own_rows = (side.rows() for side in sides)
    scores = [
        (row.dataset, row.task, row.metric, row.value, own.value)
        for row, own in zip(model_rows, own_rows, strict=True)
        if _MEANS.get(row.task) == row.metric
    ]
    return Comparison(agreement, tuple(scores))


def score_export(cfg: CfgNode, folder: str | Path, pictures: Sequence[Picture]) -> list[ResultRow]:
    """Score any exported folder of run.py on pictures of datasets.

    Args:
        cfg: of the model, for its tasks and classes.
        folder: of `d2_cityscapes.export.folder.export_model`.
        pictures: of `test_pictures`.

    Returns:
        All rows of the evaluators, as in results.json.
    """
    run, scores = load(folder), _Scores(cfg)
    for picture in tqdm(pictures, desc="scoring", unit="image"):
        image = picture.read()
        scores.process(picture, run(image), image.shape[:2])
    return scores.rows()


class _Scores:
    """The evaluators of each dataset, made when its first picture comes."""

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg.clone()
        self._cfg.defrost()
        self._cfg.TEST.SUBMISSION = False
        self._evaluators: dict[str, ShardEvaluators] = {}

    def process(self, picture: Picture, found: dict[str, Any], size: tuple[int, ...]) -> None:
        """Take in what run.py gives for a picture of `size` (H, W)."""
        if picture.entry is None or not has_truth(picture.entry["dataset"]):
            return
        name = picture.entry["dataset"]
        if name not in self._evaluators:
            self._evaluators[name] = build_evaluator(self._cfg, name)
        table = label_table_of([name])
        output = as_output(found, (size[0], size[1]), table)
        self._evaluators[name].process([picture.entry], [output])

    def rows(self) -> list[ResultRow]:
        for evaluators in self._evaluators.values():
            evaluators.evaluate()
        return [row for own in self._evaluators.values() for row in own.rows]

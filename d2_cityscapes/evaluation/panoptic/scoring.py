"""Panoptic quality of predictions in files, on several processes."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
from tqdm import tqdm

from d2_cityscapes.errors import first_few
from d2_cityscapes.evaluation.panoptic.files import PanopticFiles
from d2_cityscapes.evaluation.panoptic.map_files import IdMapFile, PanopticFileError
from d2_cityscapes.evaluation.panoptic.map_scores import InvalidMapError
from d2_cityscapes.evaluation.panoptic.quality import PanopticQuality
from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.worker_pool import map_in_order, worker_pool

__all__ = ["missing_predictions", "score_files"]

_logger = logging.getLogger(__name__)


def missing_predictions(truth: PanopticFiles, prediction: PanopticFiles) -> list[str]:
    """The images of the truth that have no prediction."""
    return [image for image in truth.maps if image not in prediction.maps]


def score_files(
    truth: PanopticFiles,
    prediction: PanopticFiles,
    *,
    table: LabelTable = CITYSCAPES,
    workers: int = 1,
    allow_missing: bool = False,
    progress: bool = False,
) -> PanopticQuality:
    """Score every image of the truth. Predictions of other images are ignored, which is logged.

    Args:
        truth: the annotated images.
        prediction: the predicted ones.
        table: the classes.
        workers: number of processes; the numbers do not depend on it.
        allow_missing: score an image without prediction as if all of it were predicted void: every
            segment of its truth is missed.
        progress: show a progress bar.

    Raises:
        D2CityscapesError: images without prediction, or a file that cannot be scored.
    """
    _check_missing(truth, prediction, allow_missing)
    extra = [image for image in prediction.maps if image not in truth.maps]
    if extra:
        _logger.warning(
            "%s: %d predictions of images without truth are ignored (%s)",
            prediction.path, len(extra), first_few(extra, 3),
        )  # fmt: skip
    pairs = [(true_map, prediction.maps.get(image)) for image, true_map in truth.maps.items()]
    quality = PanopticQuality(table)
    with (
        worker_pool(min(workers, len(pairs))) as pool,
        tqdm(total=len(pairs), desc="scoring", unit="image", disable=not progress) as bar,
    ):
        for state in map_in_order(pool, partial(_score, table=table), pairs):
            quality.merge(state)
            bar.update()
    return quality


def _check_missing(truth: PanopticFiles, prediction: PanopticFiles, allow_missing: bool) -> None:
    missing = missing_predictions(truth, prediction)
    nothing = len(missing) == len(truth.maps)
    if not missing or (allow_missing and not nothing):
        return
    remedy = "add them, or pass --allow-missing to score these images as predicted void"
    if nothing:
        remedy = f"its images are {first_few(list(prediction.maps), 3)}"
    raise PanopticFileError(
        f"{prediction.path}: no prediction for {len(missing)} of {len(truth.maps)} images "
        f"({first_few(missing, 3)}); {remedy}",
        details=missing,
    )


def _score(pair: tuple[IdMapFile, IdMapFile | None], *, table: LabelTable) -> np.ndarray:
    """State of `PanopticQuality` for one truth and its prediction, which may be missing."""
    true_map, predicted_map = pair
    true_ids = true_map.read()
    quality = PanopticQuality(table)
    try:
        if predicted_map is None:
            quality.update(np.zeros_like(true_ids), true_ids)
        else:
            quality.update(predicted_map.read(), true_ids)
    except InvalidMapError as error:
        files = [f"truth {true_map.where}"]
        if predicted_map is not None:
            files.insert(0, f"prediction {predicted_map.where}")
        raise PanopticFileError(f"{', '.join(files)}: {error}") from error
    return quality.state()

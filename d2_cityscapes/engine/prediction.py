"""What a trained model sees in pictures of one's own.

Shape letters: H, W pixels of a picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from d2_cityscapes.data.mapper import CityscapesShardMapper
from d2_cityscapes.drawing.overlay import draw_instance_ids
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer
from d2_cityscapes.engine.out_of_memory import during, images_in_words
from d2_cityscapes.engine.picture_files import (
    DRAWN_SUFFIX,
    ENDINGS,
    MARK,
    FoundPictures,
    PictureError,
    find_pictures,
    is_drawn,
    read_picture,
)
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_output
from d2_cityscapes.files import check_folder, check_not_read
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.test_time.build import as_tested, augmented
from d2_cityscapes.png import write_picture
from d2_cityscapes.sources.names import IDS_SUFFIX

__all__ = ["PictureError", "Predictor", "find_pictures", "predict_pictures"]


class Predictor:
    """A model with MODEL.WEIGHTS, which takes pictures as it was evaluated on them.

    Attributes:
        table: the classes, those of DATASETS.TEST.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Raises:
            D2CityscapesError: no weights, or weights that do not fit.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ConfigError("MODEL.WEIGHTS is empty: name the checkpoint to predict with")
        self._mapper = CityscapesShardMapper(cfg, False)
        self.table = self._mapper.table
        model = build_model(cfg).eval()
        Checkpointer(model, table=self.table).load(cfg.MODEL.WEIGHTS)
        seen = augmented if cfg.TEST.AUG.ENABLED else as_tested
        self._model = seen(cfg, model)

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """The model's output for one picture, at the picture's size.

        Args:
            image: (H, W, 3) uint8 RGB.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        inputs = {"image": self._mapper.augment(pixels).pixels, "height": height, "width": width}
        with torch.no_grad(), during(partial(images_in_words, [inputs])):
            return self._model([inputs])[0]


def predict_pictures(cfg: CfgNode, inputs: Sequence[Path], output: Path) -> FoundPictures:
    """Predict pictures and write, for each, a drawing and a map.

    <output>/<name>_drawn.jpg is the picture under its prediction, <output>/<name>_instanceIds.png
    the (H, W) 16-bit map of instance ids, panoptic, of instances (0 elsewhere) or semantic, as the
    model predicts. Both have the size of the picture as it is shown. Damaged pictures do not keep
    the others from being predicted.

    Args:
        cfg: of the model, with its trained MODEL.WEIGHTS.
        inputs: pictures, and folders of them; see `find_pictures`.
        output: folder, made if need be. What an earlier call wrote there is written anew.

    Returns:
        The pictures, all of them predicted, and what was passed over.

    Raises:
        D2CityscapesError: pictures, weights or config that cannot be used; an output that cannot be
            written, is one of the inputs, or would replace a file of other origin; in the end,
            pictures that could not be read.
    """
    found = find_pictures(inputs)
    if len(found.pictures) == 0:
        raise PictureError(
            f"{', '.join(map(str, inputs))}: no {', '.join(ENDINGS)} file{found.passed_over_text()}"
        )
    check_folder(output)
    places = {name: _places(output, name) for name in found.pictures}
    check_not_read(itertools.chain.from_iterable(places.values()), found.pictures.values())
    _check_own(places)
    predictor = Predictor(cfg)
    damaged = []
    for name, path in tqdm(found.pictures.items(), desc="predicting", unit="image"):
        try:
            image = read_picture(path)
        except PictureError as error:
            damaged.append(str(error))
            continue
        ids = ids_of_output(predictor(image), predictor.table)
        drawn = draw_instance_ids(image, ids, predictor.table, width=image.shape[1])
        for place, pixels in zip(places[name], (drawn, ids.astype(np.uint16)), strict=True):
            write_picture(place, pixels, comment=MARK)
    if damaged:
        count = len(found.pictures) - len(damaged)
        raise PictureError.of_many(
            damaged,
            f"{count} of {len(found.pictures)} pictures are in {output}{found.passed_over_text()}",
        )
    return found


def _check_own(places: Mapping[str, Sequence[Path]]) -> None:
    """Refuse to write over what is there and not of an earlier call."""
    written = itertools.chain.from_iterable(places.values())
    others = [f"{path} is not of this command" for path in written if _is_foreign(path)]
    if others:
        raise PictureError.of_many(others, "move it away, or name another folder to write to")


def _is_foreign(path: Path) -> bool:
    return path.exists() and not is_drawn(path)


def _places(output: Path, name: str) -> tuple[Path, Path]:
    """Where the drawing and the map of a picture are written."""
    return output / f"{name}{DRAWN_SUFFIX}", output / f"{name}{IDS_SUFFIX}"

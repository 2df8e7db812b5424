"""Pictures of one's own become drawings and maps of what a model sees in them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from tqdm import tqdm

from d2_cityscapes.drawing.overlay import draw_instance_ids
from d2_cityscapes.engine.prediction.pictures import (
    DRAWN_SUFFIX,
    ENDINGS,
    MARK,
    FoundPictures,
    PictureError,
    find_pictures,
    is_drawn,
    read_picture,
)
from d2_cityscapes.engine.prediction.predictor import Predictor
from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_output
from d2_cityscapes.files import check_folder, check_not_read
from d2_cityscapes.png import write_picture
from d2_cityscapes.sources.names import IDS_SUFFIX

__all__ = ["predict_pictures"]


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

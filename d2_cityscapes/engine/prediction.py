"""What a trained model sees in pictures of one's own.

Shape letters: H, W pixels of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from tqdm import tqdm

from d2_cityscapes.data.mapper import CityscapesShardMapper
from d2_cityscapes.drawing.overlay import draw_instance_ids
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_output
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.png import picture_errors, write_picture
from d2_cityscapes.sources.names import IDS_SUFFIX, PICTURES

__all__ = ["PictureError", "Predictor", "find_pictures", "predict_pictures"]


class PictureError(D2CityscapesError):
    """A picture that is missing or cannot be read, or two that would be written to one place."""


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
        self._model = build_model(cfg).eval()
        Checkpointer(self._model, table=self.table).load(cfg.MODEL.WEIGHTS)

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """The model's output for one picture, at the picture's size.

        Args:
            image: (H, W, 3) uint8 RGB.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        inputs = {"image": self._mapper.augment(pixels).pixels, "height": height, "width": width}
        with torch.no_grad():
            return self._model([inputs])[0]


def predict_pictures(cfg: CfgNode, inputs: Sequence[Path], output: Path) -> int:
    """Predict pictures and write, for each, a drawing and a map.

    <output>/<name>_drawn.jpg is the picture under its prediction, <output>/<name>_instanceIds.png
    the (H, W) 16-bit map of instance ids, panoptic, of instances (0 elsewhere) or semantic, as the
    model predicts.

    Args:
        cfg: of the model, with its trained MODEL.WEIGHTS.
        inputs: pictures, PNG or JPEG, and folders of them.
        output: folder, made if need be.

    Returns:
        How many pictures there were.

    Raises:
        D2CityscapesError: pictures, weights or config that cannot be used.
    """
    pictures = dict(find_pictures(inputs))
    if len(pictures) == 0:
        raise PictureError(f"{', '.join(map(str, inputs))}: no {', '.join(PICTURES)} file")
    predictor = Predictor(cfg)
    for name, path in tqdm(pictures.items(), desc="predicting", unit="image"):
        with picture_errors(path, kind="picture", error_type=PictureError):
            image = np.ascontiguousarray(read_image(str(path), "RGB"))
        ids = ids_of_output(predictor(image), predictor.table)
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw_instance_ids(image, ids, predictor.table, width=image.shape[1])
        write_picture(target.with_name(f"{target.name}_drawn.jpg"), drawn)
        write_picture(target.with_name(f"{target.name}{IDS_SUFFIX}"), ids.astype(np.uint16))
    return len(pictures)


def find_pictures(inputs: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(name, path) of each picture, where the name is its path below the input, without ending.

    Raises:
        PictureError: a missing input, or two pictures of one name.
    """
    seen: dict[str, Path] = {}
    for source in inputs:
        if not source.exists():
            raise PictureError(f"{source}: missing")
        folder = source if source.is_dir() else source.parent
        found = sorted(source.rglob("*")) if source.is_dir() else [source]
        for path in found:
            if path != source and path.suffix.lower() not in PICTURES:
                continue
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in seen:
                raise PictureError(f"{path} and {seen[name]}: both would be written as {name}")
            seen[name] = path
            yield name, path

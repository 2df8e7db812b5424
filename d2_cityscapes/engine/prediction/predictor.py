"""A trained model that takes pictures, as it was evaluated on them.

Shape letters: H, W pixels of a picture.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from d2_cityscapes.data.mapper import CityscapesShardMapper
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer
from d2_cityscapes.engine.out_of_memory import during, images_in_words
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.test_time.build import as_tested, augmented

__all__ = ["Predictor"]


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

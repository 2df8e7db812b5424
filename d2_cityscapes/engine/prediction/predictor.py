"""A trained model that takes pictures, as it was evaluated on them.

Shape letters: H, W pixels of a picture; C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from d2_cityscapes.config import model_tasks
from d2_cityscapes.data.mapper import CityscapesShardMapper
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer
from d2_cityscapes.engine.out_of_memory import during, images_in_words
from d2_cityscapes.engine.prediction.best_score import BestScore
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.panoptic.postprocessing import CROPPED, resize_to_labels
from d2_cityscapes.modeling.test_time.build import as_tested, augmented

__all__ = ["Predictor"]


class Predictor:
    """A model with MODEL.WEIGHTS, which takes pictures as it was evaluated on them.

    Attributes:
        table: the classes, those of DATASETS.TEST.
        best_score: the best score of an object so far, also of those below
            MODEL.ROI_HEADS.SCORE_THRESH_TEST where the model has such; None before any.
    """

    def __init__(self, cfg: CfgNode, *, lean: bool = False) -> None:
        """
        Args:
            cfg: of the model, with MODEL.WEIGHTS.
            lean: give what drawing needs, in less memory: semantics as (H, W) uint8 train ids,
                "pred_masks" as `CroppedMasks`. The classes and pixels are the same.

        Raises:
            D2CityscapesError: no weights, or weights that do not fit.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ConfigError("MODEL.WEIGHTS is empty: name the checkpoint to predict with")
        cfg = self._lean_config(cfg) if lean else cfg
        self._mapper = CityscapesShardMapper(cfg, False)
        self.table = self._mapper.table
        self._lean = lean
        model = build_model(cfg).eval()
        Checkpointer(model, table=self.table).load(cfg.MODEL.WEIGHTS)
        self._best = BestScore(model)
        # of the others, scores of the picture's size are averaged, or made of more than scores
        self._enlarges_labels = lean and _plainly_semantic(cfg)
        self._model = self._seen(cfg, model)

    @property
    def best_score(self) -> float | None:
        return self._best.value

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """The model's output for one picture, at the picture's size.

        Args:
            image: (H, W, 3) uint8 RGB.

        Raises:
            D2CityscapesError: something else.
        """
        return self.batch([image])[0]

    @torch.no_grad()
    def batch(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """The outputs for several pictures, which the network sees together.

        Pictures of different sizes are padded to the largest, which changes what is seen near their
        edges; of one size, the results are those of one at a time but for rounding.

        Args:
            images: (H, W, 3) uint8 RGB each.
        """
        inputs = [self._input(image) for image in images]
        with during(partial(images_in_words, inputs)):
            outputs = self._model(inputs)
        for image, output in zip(images, outputs, strict=True):
            if self._enlarges_labels:
                scores, (height, width) = output["sem_seg"], image.shape[:2]
                own = (scores.shape[1], scores.shape[2])
                output["sem_seg"] = resize_to_labels(scores, own, own, (height, width))
            if "instances" in output:
                self._best.see(output["instances"].scores)
        return outputs

    def _lean_config(self, cfg: CfgNode) -> CfgNode:
        """With TEST.SEM_SEG_SCORES off, wherever the model has classes in place of them."""
        if cfg.MODEL.META_ARCHITECTURE == "UniversalSegmentor" and _averages(cfg):
            return cfg
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TEST.SEM_SEG_SCORES = False
        cfg.freeze()
        return cfg

    def _seen(self, cfg: CfgNode, model: nn.Module) -> nn.Module:
        """The model as it is tested."""
        return (augmented if cfg.TEST.AUG.ENABLED else as_tested)(cfg, model)

    def _input(self, image: np.ndarray) -> dict[str, Any]:
        """What Detectron2's models take for a picture."""
        _check(image)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        pixels = self._mapper.augment(pixels).pixels
        height, width = image.shape[0], image.shape[1]
        if self._enlarges_labels and pixels[0].numel() < height * width:
            height, width = pixels.shape[1], pixels.shape[2]
        return {"image": pixels, "height": height, "width": width, CROPPED: self._lean}


def _check(image: Any) -> None:
    shape: tuple[int, ...] = tuple(getattr(image, "shape", ()))
    kind = getattr(image, "dtype", type(image).__name__)
    if not (
        isinstance(image, np.ndarray)
        and kind == np.uint8
        and len(shape) == 3
        and shape[2] == 3
        and image.size
    ):
        raise D2CityscapesError(
            f"a picture is an (H, W, 3) array of uint8, RGB, and not {shape} of {kind}"
        )


def _averages(cfg: CfgNode) -> bool:
    return cfg.TEST.AUG.ENABLED or cfg.TEST.SLIDING_WINDOW.ENABLED


def _plainly_semantic(cfg: CfgNode) -> bool:
    """Whether the model gives scores that it brought to the picture's size in the last step."""
    universal = cfg.MODEL.META_ARCHITECTURE == "UniversalSegmentor"
    return model_tasks(cfg) == ("sem_seg",) and not universal and not _averages(cfg)

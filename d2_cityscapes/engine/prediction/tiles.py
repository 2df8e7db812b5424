"""Large pictures in parts at full resolution: each is seen by itself, and what they saw is joined.

Shape letters: H, W pixels of the picture; h, w of a tile; C classes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from d2_cityscapes.config import model_tasks
from d2_cityscapes.engine.out_of_memory import during, images_in_words
from d2_cityscapes.engine.prediction.predictor import Predictor
from d2_cityscapes.engine.prediction.seams import Part, joined
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.panoptic.postprocessing import CROPPED
from d2_cityscapes.modeling.panoptic.seamless import SeamlessPanoptic
from d2_cityscapes.modeling.test_time.windows import SlidingWindows, starts
from d2_cityscapes.structures.cropped_masks import Crop, CroppedMasks

__all__ = ["TiledPredictor", "Tiling"]

_LEAST = 64  # pixels of a side of a tile, as of TEST.SLIDING_WINDOW


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut.

    Attributes:
        rows, columns: of tiles.
        overlap: part of a tile's side that the next one has too, from 0 to below 1.
    """

    rows: int
    columns: int
    overlap: float = 0.2

    @classmethod
    def parse(cls, text: str, overlap: float) -> Tiling:
        """ "2x3": two rows of three.

        Raises:
            D2CityscapesError: another text, or an overlap that is none.
        """
        numbers = text.lower().split("x")
        if len(numbers) != 2 or not all(n.isdecimal() and int(n) for n in numbers):
            raise D2CityscapesError(f"--tiles {text}: use ROWSxCOLUMNS, e.g. 2x3")
        if not 0 <= overlap < 1:
            raise D2CityscapesError(f"--tile-overlap {overlap:g}: use a part of a tile, 0 to 0.9")
        return cls(int(numbers[0]), int(numbers[1]), overlap)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the tiles of a picture."""
        return _side(height, self.rows, self.overlap), _side(width, self.columns, self.overlap)

    def stride(self, height: int, width: int) -> tuple[int, int]:
        """(down, right) from one tile to the next."""
        h, w = self.size(height, width)
        down = _ceiled(height - h, self.rows - 1) or h
        return down, _ceiled(width - w, self.columns - 1) or w


class TiledPredictor(Predictor):
    """A `Predictor` that looks at the tiles of a picture one after another.

    Tiles are not resized: INPUT.MIN_SIZE_TEST and FIXED_SIZE do not act. Semantic scores are
    averaged where tiles overlap, by `SlidingWindows`. Instances that a seam has cut are joined, see
    `joined`. Panoptics are fused from both, by the rules of the model.
    """

    def __init__(self, cfg: CfgNode, tiling: Tiling, *, lean: bool = False) -> None:
        """
        Args:
            cfg: of the model, with MODEL.WEIGHTS.
            tiling: how to cut.
            lean: as of `Predictor`.

        Raises:
            D2CityscapesError: a model whose tiles cannot be joined, or a config that has its own
                way to look at large pictures.
        """
        _check_config(cfg)
        self._tiling, self._tasks = tiling, model_tasks(cfg)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FIXED_SIZE = 0, []
        cfg.freeze()
        super().__init__(cfg, lean=lean)
        self._enlarges_labels = False  # tiles are not resized

    def _lean_config(self, cfg: CfgNode) -> CfgNode:
        """Scores are averaged here."""
        return cfg

    @torch.no_grad()
    def batch(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """The outputs for several pictures, one after another."""
        return [self._of_one(image) for image in images]

    def _of_one(self, image: np.ndarray) -> dict[str, Any]:
        inputs = self._input(image)
        height, width = image.shape[:2]
        h, w = self._tiling.size(height, width)
        if min(h, w) < _LEAST:
            raise D2CityscapesError(
                f"--tiles {self._tiling.rows}x{self._tiling.columns}: tiles of a picture of "
                f"{height} x {width} (H x W) would be {h} x {w}; use fewer, of {_LEAST} or more"
            )
        tiles = _Tiles(self._model)
        stride = self._tiling.stride(height, width)
        first = {"image": inputs["image"][:, :h, :w]}
        with during(partial(images_in_words, [first])):
            if "sem_seg" in self._tasks:
                # it goes from tile to tile; the instances are noted down on the way
                windows = SlidingWindows(tiles, (h, w), stride, labels=self._lean)
                output: dict[str, Any] = windows([inputs])[0]
            else:
                output = {}
                corners = itertools.product(
                    starts(height, h, stride[0]), starts(width, w, stride[1])
                )
                for top, left in corners:
                    own = inputs["image"][:, top : top + h, left : left + w]
                    tiles([{"image": own, "height": h, "width": w}])
        if not tiles.found:
            return output
        found = self._joined(tiles.found, (height, width), (h, w), stride)
        self._best.see(found.scores)
        model = tiles.model
        if isinstance(model, SeamlessPanoptic):
            return model.combined(output["sem_seg"], found)
        return {**output, "instances": found}

    def _joined(
        self,
        tiles: Sequence[Instances],
        size: tuple[int, int],
        tile: tuple[int, int],
        stride: tuple[int, int],
    ) -> Instances:
        """One list of instances, the best score first, from those of each tile in order."""
        corners = itertools.product(
            starts(size[0], tile[0], stride[0]), starts(size[1], tile[1], stride[1])
        )
        parts = [
            part
            for number, (own, corner) in enumerate(zip(tiles, corners, strict=True))
            for part in _parts(own, number, corner, tile)
        ]
        whole = joined(parts)
        result = Instances(size)
        boxes = np.array([part.box for part in whole], dtype=np.float32).reshape(-1, 4)
        result.pred_boxes = Boxes(torch.from_numpy(boxes))
        result.scores = torch.tensor([part.score for part in whole], dtype=torch.float32)
        result.pred_classes = torch.tensor([part.thing for part in whole], dtype=torch.int64)
        if "segm" in self._tasks:
            masks = CroppedMasks(size, [part.crop for part in whole if part.crop is not None])
            result.pred_masks = masks if self._lean else masks.tensor
        return result


class _Tiles(nn.Module):
    """The model for one tile at a time, whose instances it keeps and does not fuse."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.found: list[Instances] = []
        self.train(model.training)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        inputs = [{**own, CROPPED: True} for own in batched_inputs]
        with _unfused(self.model):
            output = self.model(inputs)[0]
        if "instances" in output:
            self.found.append(output["instances"].to("cpu"))
        return [output]


@contextlib.contextmanager
def _unfused(model: nn.Module) -> Iterator[None]:
    """A panoptic model gives its scores and instances alone."""
    if not isinstance(model, SeamlessPanoptic):
        yield
        return
    before = model.combine, model.sem_seg_scores
    model.combine, model.sem_seg_scores = False, True
    try:
        yield
    finally:
        model.combine, model.sem_seg_scores = before


def _parts(
    found: Instances, number: int, corner: tuple[int, int], tile: tuple[int, int]
) -> list[Part]:
    """The instances of a tile, in pixels of the picture."""
    (top, left), (h, w) = corner, tile
    masks = found.pred_masks if found.has("pred_masks") else None
    if masks is not None and not isinstance(masks, CroppedMasks):  # of Detectron2's own models
        masks = CroppedMasks(tile, [Crop(0, 0, own.numpy()) for own in masks])
    parts = []
    for n, (x0, y0, x1, y1) in enumerate(found.pred_boxes.tensor.tolist()):
        crop = None if masks is None else masks.crop(n)
        parts.append(
            Part(
                tile=number,
                seen=(left, top, left + w, top + h),
                thing=int(found.pred_classes[n]),
                score=float(found.scores[n]),
                box=(x0 + left, y0 + top, x1 + left, y1 + top),
                crop=None if crop is None else Crop(crop.top + top, crop.left + left, crop.pixels),
            )
        )
    return parts


def _check_config(cfg: CfgNode) -> None:
    for key, is_on in (
        ("TEST.SLIDING_WINDOW", cfg.TEST.SLIDING_WINDOW.ENABLED),
        ("TEST.AUG", cfg.TEST.AUG.ENABLED),
    ):
        if is_on:
            raise ConfigError(
                f"--tiles: not with {key}.ENABLED True, which has its own way: set it to False"
            )
    universal = cfg.MODEL.META_ARCHITECTURE == "UniversalSegmentor"
    if universal and cfg.MODEL.UNIVERSAL.INSTANCES:
        raise ConfigError(
            "--tiles: not for UniversalSegmentor with MODEL.UNIVERSAL.INSTANCES True, which makes "
            "panoptics of a whole picture at once"
        )


def _side(length: int, number: int, overlap: float) -> int:
    """Pixels of a tile, so many of which cover a side."""
    return min(length, -int(-length // (number - (number - 1) * overlap)))


def _ceiled(length: int, number: int) -> int:
    return -(-length // number) if number else 0

"""Exports that hold a config and weights: for stock Detectron2, and for this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_stock_cfg
from detectron2.engine import DefaultPredictor

from d2_cityscapes.convert import convert_file
from d2_cityscapes.engine.prediction.loading import model_config
from d2_cityscapes.engine.prediction.predictor import Predictor
from d2_cityscapes.export.arrays import as_arrays
from d2_cityscapes.export.kinds import FORMATS
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.modeling.anchors.generator import resolve_anchors
from d2_cityscapes.run_folder import CONFIG

__all__ = ["as_stock_predicts", "run_weights", "write_weights_folder"]


def write_weights_folder(cfg: CfgNode, kind: str, folder: Path, output: Path) -> None:
    """Write config.yaml and the weights of "detectron2" or "safetensors".

    Args:
        cfg: of the model, with its MODEL.WEIGHTS.
        kind: the format.
        folder: there already.
        output: what the folder will be called; Detectron2's config names the weights in it.

    Raises:
        ConversionError: a model that stock Detectron2 does not have.
    """
    weights = Path(cfg.MODEL.WEIGHTS)
    if kind == "detectron2":
        source = folder / "source.yaml"
        source.write_text(cfg.dump())
        convert_file("to-detectron2", weights, folder, config_file=source)
        source.unlink()
        config = folder / CONFIG
        config.write_text(config.read_text().replace(str(folder.resolve()), str(output.resolve())))
        return
    cfg = resolve_anchors(cfg).clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = cfg.OUTPUT_DIR = ""  # places of the machine that it was trained on
    config = folder / CONFIG
    config.write_text(cfg.dump())
    convert_file("to-safetensors", weights, folder / FORMATS[kind][0], config_file=config)


def as_stock_predicts(cfg: CfgNode) -> CfgNode:
    """The config of the model that stock Detectron2 can be held against.

    It resizes with Pillow, and its panoptics follow other rules.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.RESIZE_BACKEND = "pil"
    cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = False
    cfg.freeze()
    return cfg


def run_weights(
    kind: str, folder: Path, table: LabelTable
) -> Callable[[np.ndarray], dict[str, Any]]:
    """What an exported folder of weights predicts, as run.py would give it.

    Args:
        kind: "detectron2", which stock Detectron2 runs, or "safetensors".
        folder: of `write_weights_folder`.
        table: the classes.
    """
    weights = folder / FORMATS[kind][0]
    if kind == "safetensors":
        predictor = Predictor(model_config((folder / CONFIG, weights), ["MODEL.DEVICE", "cpu"]))
        return lambda image: as_arrays(predictor(image), table)
    stock = get_stock_cfg()
    stock.merge_from_file(str(folder / CONFIG))
    stock.MODEL.DEVICE, stock.MODEL.WEIGHTS = "cpu", str(weights)
    predict = DefaultPredictor(stock)

    def run(image: np.ndarray) -> dict[str, Any]:
        output = predict(np.ascontiguousarray(image[..., ::-1]))  # it takes BGR
        output.pop("panoptic_seg", None)
        return as_arrays(output, table)

    return run

"""Predict with stock Detectron2 alone; run as a process of its own by test_stock.py.

Usage: stock_predictions.py IMAGE.npy FOLDER..., each as convert_to_stock wrote it; writes
FOLDER/predictions.pth.
"""

import sys

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor

image = np.load(sys.argv[1])
for folder in sys.argv[2:]:
    cfg = get_cfg()
    cfg.merge_from_file(f"{folder}/config.yaml")
    predictions = DefaultPredictor(cfg)(image)
    if "instances" in predictions:
        predictions["instances"] = predictions["instances"].get_fields()
        predictions["instances"]["pred_boxes"] = predictions["instances"]["pred_boxes"].tensor
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    names = {"things": metadata.thing_classes, "classes": metadata.stuff_classes}
    torch.save({"predictions": predictions, **names}, f"{folder}/predictions.pth")
assert "d2_cityscapes" not in sys.modules

"""model.json: what run.py, and whoever reads it, has to know of an exported model."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from d2_cityscapes import __version__
from d2_cityscapes.config import model_tasks
from d2_cityscapes.evaluation.results import package_versions
from d2_cityscapes.export.graph.pixels import Size, Sizes
from d2_cityscapes.export.run import network_size
from d2_cityscapes.labels import LabelTable

__all__ = ["MADE_BY", "describe", "input_rules", "sizes_of"]

MADE_BY = "d2_cityscapes"  # by which a folder is known as an export, which may be written anew


def input_rules(cfg: CfgNode) -> dict[str, Any]:
    """How a picture is brought to the size that the network sees."""
    return {
        "short_edge": cfg.INPUT.MIN_SIZE_TEST,
        "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
        "network": list(cfg.INPUT.FIXED_SIZE) or None,
        "filter": cfg.INPUT.RESIZE_BACKEND,
    }


def sizes_of(cfg: CfgNode, size: Size) -> Sizes:
    """Those of a graph for pictures of `size` (H, W) alone."""
    return Sizes(network_size(input_rules(cfg), *size), size)


def describe(
    cfg: CfgNode,
    table: LabelTable,
    kind: str,
    *,
    weights_sha256: str,
    graph: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of model.json, but for the comparison.

    Args:
        cfg: of the model.
        table: the classes.
        kind: the format.
        weights_sha256: of the file of weights.
        graph: of a format that run.py runs: "outputs", "fixed" (H, W) or None, "multiple", and
            what `exporter_of` gives.
    """
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    about: dict[str, Any] = {
        "made_by": f"{MADE_BY} {__version__}",
        "format": kind,
        "tasks": list(model_tasks(cfg)),
        "model": cfg.MODEL.META_ARCHITECTURE,
        "dataset": table.name,
        "classes": [
            {
                "name": c.name,
                "label_id": c.label_id,
                "color": list(c.color),
                "is_thing": c.is_thing,
            }
            for c in table.classes
        ],
        "things": [c.train_id for c in table.things],
        "input": input_rules(cfg),
        "panoptic": None,
        "weights_sha256": weights_sha256,
        "versions": package_versions(),
    }
    if "bbox" in model_tasks(cfg):
        heads = cfg.MODEL.ROI_HEADS
        about["detections"] = {
            "score_threshold": heads.SCORE_THRESH_TEST,
            "nms_threshold": heads.NMS_THRESH_TEST,
            "most": cfg.TEST.DETECTIONS_PER_IMAGE,
        }
    if "panoptic_seg" in model_tasks(cfg):
        about["panoptic"] = {
            "score_threshold": combine.INSTANCES_CONFIDENCE_THRESH,
            "overlap_threshold": combine.OVERLAP_THRESH,
            "stuff_area_limit": combine.STUFF_AREA_LIMIT,
        }
    if graph is not None:
        about["outputs"] = list(graph["outputs"])
        about["input"] |= {"fixed": graph["fixed"], "multiple": graph["multiple"]}
        about |= {key: graph[key] for key in ("exporter", "opset") if key in graph}
    return about

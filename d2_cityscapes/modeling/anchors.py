"""`KMeansAnchorGenerator`, and fitting its anchors to the training set of a config."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from d2_cityscapes.modeling.anchor_clustering import (
    DEFAULT_RATIOS,
    DEFAULT_SIZES,
    AnchorError,
    AnchorSet,
    anchor_quality,
    cluster_shapes,
    plot_anchors,
    read_anchors,
    write_anchors,
)

__all__ = ["KMeansAnchorGenerator", "fit_anchors", "network_shapes", "short_edges"]

RANGE_SAMPLES = 5  # short edges that stand for a range of them
SEED = 0


@ANCHOR_GENERATOR_REGISTRY.register()
class KMeansAnchorGenerator(DefaultAnchorGenerator):
    """`DefaultAnchorGenerator` with the anchors of MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE.

    The k-th smallest size belongs to the k-th feature level, and every level has every ratio. With
    as many ratios as before (three by default) the weights of an RPN still fit. Without a SOURCE
    the anchors are those of the config, as in the stock generator.
    """

    @classmethod
    def from_config(cls, cfg, input_shape):
        arguments = super().from_config(cfg, input_shape)
        source = cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE
        if not source:
            return arguments
        found = read_anchors(source)
        if len(found.anchors.sizes) != len(input_shape):
            raise AnchorError(
                f"{source}: {len(found.anchors.sizes)} sizes for the {len(input_shape)} feature "
                "levels of MODEL.RPN.IN_FEATURES; run tools/kmeans_anchors.py with "
                f"MODEL.ANCHOR_GENERATOR.KMEANS.NUM_SIZES {len(input_shape)}"
            )
        if found.resize != _resize(cfg):
            message = (
                f"{source}: anchors were fitted to images resized by {found.resize}, but this "
                f"config has {_resize(cfg)}"
            )
            # Once: Detectron2 builds a generator for the RPN and another to count its anchors.
            log_first_n(logging.WARNING, message, key="message")
        arguments["sizes"] = [[size] for size in found.anchors.sizes]
        arguments["aspect_ratios"] = [list(found.anchors.aspect_ratios)]
        return arguments


def fit_anchors(cfg: CfgNode, output: str | Path) -> AnchorSet:
    """Cluster the boxes of cfg.DATASETS.TRAIN as the network sees them; write JSON and a plot.

    Args:
        cfg: its DATASETS.TRAIN, INPUT.*_TRAIN and MODEL.ANCHOR_GENERATOR.KMEANS are used.
        output: the JSON file; the plot gets the same name with ``.png``.

    Raises:
        AnchorError: unknown or empty datasets, fewer boxes than clusters.
    """
    shapes = network_shapes(cfg, _dataset_dicts(cfg.DATASETS.TRAIN))
    kmeans = cfg.MODEL.ANCHOR_GENERATOR.KMEANS
    if len(shapes) == 0:
        raise AnchorError(f"no boxes in DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN) or '()'}")
    anchors = cluster_shapes(shapes, kmeans.NUM_SIZES, kmeans.NUM_RATIOS, seed=SEED)
    quality = {
        "kmeans": anchor_quality(shapes, anchors.sizes, anchors.aspect_ratios),
        "default": anchor_quality(shapes, DEFAULT_SIZES, DEFAULT_RATIOS),
    }
    found = AnchorSet(
        anchors, tuple(cfg.DATASETS.TRAIN), _resize(cfg), len(shapes), seed=SEED, quality=quality
    )
    plot_anchors(Path(output).with_suffix(".png"), shapes, anchors)
    write_anchors(output, found)
    return found


def network_shapes(cfg: CfgNode, dataset_dicts: Iterable[dict[str, Any]]) -> np.ndarray:
    """(N, 2) float64 widths and heights of the training boxes after the training resize.

    If training picks the short edge of an image among several, every box counts once for each of
    them (see `short_edges`). Crowds, empty boxes and instances below INPUT.MIN_INSTANCE_AREA are
    left out, as in training.
    """
    edges = short_edges(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    scales: dict[tuple[int, int], np.ndarray] = {}  # (H, W) -> (E, 2) factors of width and height
    shapes = [np.zeros((0, 2))]
    for record in dataset_dicts:
        size = record["height"], record["width"]
        if size not in scales:
            scales[size] = np.array(
                [_scale(*size, edge, cfg.INPUT.MAX_SIZE_TRAIN) for edge in edges]
            )
        rows = [
            _shape_and_area(a) for a in record.get("annotations", ()) if not a.get("iscrowd", 0)
        ]
        if not rows:
            continue
        table = np.array(rows, dtype=np.float64)  # (M, 3)
        scaled = (table[None, :, :2] * scales[size][:, None]).reshape(-1, 2)
        areas = (table[None, :, 2] * scales[size].prod(axis=1)[:, None]).reshape(-1)
        shapes.append(scaled[(scaled > 0).all(axis=1) & (areas >= cfg.INPUT.MIN_INSTANCE_AREA)])
    return np.concatenate(shapes)


def short_edges(min_size: int | tuple[int, ...], sampling: str) -> list[int]:
    """The short edges that stand for INPUT.MIN_SIZE_TRAIN.

    All of a "choice"; for a "range" five evenly spaced ones from its smallest to its largest. 0
    means no resize, as in Detectron2.
    """
    sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size)
    if sampling == "range":
        return sorted({round(edge) for edge in np.linspace(sizes[0], sizes[-1], RANGE_SAMPLES)})
    return list(sizes)


def _scale(height: int, width: int, edge: int, max_size: int) -> tuple[float, float]:
    if edge == 0:
        return 1.0, 1.0
    new_height, new_width = ResizeShortestEdge.get_output_shape(height, width, edge, max_size)
    return new_width / width, new_height / height


def _shape_and_area(annotation: dict[str, Any]) -> tuple[float, float, float]:
    x0, y0, x1, y1 = BoxMode.convert(
        list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS
    )
    width, height = x1 - x0, y1 - y0
    return width, height, annotation.get("area", width * height)


def _dataset_dicts(names: Iterable[str]) -> Iterable[dict[str, Any]]:
    for name in names:
        if name not in DatasetCatalog.list():
            raise AnchorError(f"DATASETS.TRAIN: no dataset {name!r} is registered")
        yield from DatasetCatalog.get(name)


def _resize(cfg: CfgNode) -> dict[str, object]:
    min_size = cfg.INPUT.MIN_SIZE_TRAIN
    return {
        "min_size": [min_size] if isinstance(min_size, int) else list(min_size),
        "max_size": cfg.INPUT.MAX_SIZE_TRAIN,
        "sampling": cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
    }

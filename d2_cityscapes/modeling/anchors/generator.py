"""`KMeansAnchorGenerator`, and fitting its anchors to the training set of a config."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n
from torch import Tensor

from d2_cityscapes.modeling.anchors.clustering import (
    DEFAULT_RATIOS,
    DEFAULT_SIZES,
    AnchorError,
    AnchorSet,
    anchor_quality,
    cluster_shapes,
    cluster_shapes_as_published,
    read_anchors,
    write_anchors,
)
from d2_cityscapes.modeling.anchors.joint import fit_jointly
from d2_cityscapes.modeling.anchors.plot import plot_anchors
from d2_cityscapes.modeling.anchors.record import RECORD, REMEDY, anchor_difference, make_record

__all__ = [
    "KMeansAnchorGenerator",
    "fit_anchors",
    "network_shapes",
    "resolve_anchors",
    "short_edges",
]

METHODS = ("separate", "joint", "paper")
RANGE_SAMPLES = 5  # short edges, or factors, that stand for a range of them
SEED = 0


@ANCHOR_GENERATOR_REGISTRY.register()
class KMeansAnchorGenerator(DefaultAnchorGenerator):
    """`DefaultAnchorGenerator` with the anchors of MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE.

    The k-th smallest size belongs to the k-th feature level. With as many ratios a level as before
    (three by default) the weights of an RPN still fit. Without a SOURCE the anchors are those of
    the config, as in the stock generator.

    The anchors travel with the weights, in a buffer of the state dict (see `anchor_record`).
    Loading weights of other anchors is an error; those that do not tell theirs are taken.
    """

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.5,
    ) -> None:
        """The arguments of `DefaultAnchorGenerator`."""
        super().__init__(sizes=sizes, aspect_ratios=aspect_ratios, strides=strides, offset=offset)
        self.register_buffer(RECORD, make_record(sizes, aspect_ratios, len(strides)))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        return super().from_config(resolve_anchors(cfg, len(input_shape)), input_shape)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
    ) -> None:
        name = prefix + RECORD
        difference = name in state_dict and anchor_difference(state_dict[name], self.cell_anchors)
        if difference:
            raise AnchorError(f"weights of {prefix.rstrip('.')}: {difference}; {REMEDY}")
        super()._load_from_state_dict({**state_dict, name: getattr(self, RECORD)}, prefix, *args)


def resolve_anchors(cfg: CfgNode, num_levels: int | None = None) -> CfgNode:
    """The config with the anchors of MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE written out.

    They become SIZES and ASPECT_RATIOS, and SOURCE "", so that the config needs the file no longer.
    Without a SOURCE, or with a generator that does not read it, the config itself is returned.

    Args:
        cfg: frozen or not; stays as it is.
        num_levels: number of feature levels; None for that of the model's proposals.

    Raises:
        AnchorError: a file that cannot be used, or that does not have a size for each level.
    """
    source = cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE
    generator = cfg.MODEL.ANCHOR_GENERATOR.NAME
    if source and generator != "KMeansAnchorGenerator":
        message = f"MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE {source}: {generator} does not read it"
        log_first_n(logging.WARNING, message, key="message")
        return cfg
    if not source:
        return cfg
    found = read_anchors(source)
    num_levels = _num_levels(cfg) if num_levels is None else num_levels
    if len(found.anchors.sizes) != num_levels:
        raise AnchorError(
            f"{source}: {len(found.anchors.sizes)} sizes for the {num_levels} feature levels of "
            "MODEL.RPN.IN_FEATURES; run d2c anchors with "
            f"MODEL.ANCHOR_GENERATOR.KMEANS.NUM_SIZES {num_levels}"
        )
    if found.resize != _resize(cfg):
        message = (
            f"{source}: anchors were fitted to images resized by {found.resize}, but this "
            f"config has {_resize(cfg)}"
        )
        # Once: Detectron2 builds a generator for the RPN and another to count its anchors.
        log_first_n(logging.WARNING, message, key="message")
    resolved = cfg.clone()
    resolved.defrost()
    generator = resolved.MODEL.ANCHOR_GENERATOR
    generator.SIZES = [[size] for size in found.anchors.sizes]
    generator.ASPECT_RATIOS = [list(ratios) for ratios in found.anchors.aspect_ratios]
    generator.KMEANS.SOURCE = ""
    if cfg.is_frozen():
        resolved.freeze()
    return resolved


def _num_levels(cfg: CfgNode) -> int:
    retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    return len((cfg.MODEL.RETINANET if retinanet else cfg.MODEL.RPN).IN_FEATURES)


def fit_anchors(cfg: CfgNode, output: str | Path) -> AnchorSet:
    """Cluster the boxes of cfg.DATASETS.TRAIN as the network sees them; write JSON and a plot.

    Args:
        cfg: its DATASETS.TRAIN, INPUT.*_TRAIN and MODEL.ANCHOR_GENERATOR.KMEANS are used.
        output: the JSON file; the plot gets the same name with ``.png``.

    Raises:
        AnchorError: unknown method, unknown or empty datasets, fewer boxes than clusters.
    """
    kmeans = cfg.MODEL.ANCHOR_GENERATOR.KMEANS
    _check_method(cfg)
    shapes = network_shapes(cfg, _dataset_dicts(cfg.DATASETS.TRAIN))
    if len(shapes) == 0:
        raise AnchorError(f"no boxes in DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN) or '()'}")
    fitted = {"separate": cluster_shapes(shapes, kmeans.NUM_SIZES, kmeans.NUM_RATIOS, seed=SEED)}
    if kmeans.METHOD == "joint":
        fitted["joint"] = fit_jointly(shapes, fitted["separate"])
    elif kmeans.METHOD == "paper":
        fitted["paper"] = cluster_shapes_as_published(shapes, kmeans.NUM_SIZES, kmeans.NUM_RATIOS)
    quality = {
        name: anchor_quality(shapes, anchors.sizes, anchors.aspect_ratios)
        for name, anchors in fitted.items()
    }
    quality = {
        "kmeans": quality.pop(kmeans.METHOD),
        **quality,
        "default": anchor_quality(shapes, DEFAULT_SIZES, DEFAULT_RATIOS),
    }
    found = AnchorSet(
        fitted[kmeans.METHOD],
        tuple(cfg.DATASETS.TRAIN),
        _resize(cfg),
        num_boxes=len(shapes),
        seed=SEED,
        method=kmeans.METHOD,
        quality=quality,
    )
    plot_anchors(Path(output).with_suffix(".png"), shapes, fitted)
    write_anchors(output, found)
    return found


def _check_method(cfg: CfgNode) -> None:
    kmeans, num_levels = cfg.MODEL.ANCHOR_GENERATOR.KMEANS, _num_levels(cfg)
    if kmeans.METHOD not in METHODS:
        raise AnchorError(
            f"MODEL.ANCHOR_GENERATOR.KMEANS.METHOD {kmeans.METHOD!r}: it is one of "
            f"{', '.join(METHODS)}"
        )
    if kmeans.METHOD == "joint" and num_levels != kmeans.NUM_SIZES:
        raise AnchorError(
            f"MODEL.ANCHOR_GENERATOR.KMEANS.NUM_SIZES {kmeans.NUM_SIZES}: the joint method needs "
            f"one for each of the {num_levels} feature levels of MODEL.RPN.IN_FEATURES"
        )


def network_shapes(cfg: CfgNode, dataset_dicts: Iterable[dict[str, Any]]) -> np.ndarray:
    """(N, 2) float64 widths and heights of the training boxes after the training resize.

    If training picks the short edge of an image among several, every box counts once for each of
    them (see `short_edges`). Crowds, empty boxes and instances below INPUT.MIN_INSTANCE_AREA are
    left out, as in training. Crops of INPUT.SCALE_JITTER make no box larger than they are.
    """
    scales: dict[tuple[int, int], np.ndarray] = {}  # (H, W) -> (E, 2) factors of width and height
    shapes = [np.zeros((0, 2))]
    for record in dataset_dicts:
        size = record["height"], record["width"]
        if size not in scales:
            scales[size] = np.array(_scales(cfg, *size))
        rows = [
            _shape_and_area(a) for a in record.get("annotations", ()) if not a.get("iscrowd", 0)
        ]
        if not rows:
            continue
        table = np.array(rows, dtype=np.float64)  # (M, 3)
        scaled = (table[None, :, :2] * scales[size][:, None]).reshape(-1, 2)
        if cfg.INPUT.SCALE_JITTER.ENABLED:
            scaled = np.minimum(scaled, cfg.INPUT.SCALE_JITTER.CROP_SIZE[::-1])
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


def _scales(cfg: CfgNode, height: int, width: int) -> list[tuple[float, float]]:
    """Factors of width and height for each size that training may give such an image."""
    if cfg.INPUT.FIXED_SIZE:
        return [(cfg.INPUT.FIXED_SIZE[1] / width, cfg.INPUT.FIXED_SIZE[0] / height)]
    scales = []
    for edge in short_edges(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING):
        new_height, new_width = height, width
        if edge > 0:
            new_height, new_width = ResizeShortestEdge.get_output_shape(
                height, width, edge, cfg.INPUT.MAX_SIZE_TRAIN
            )
        scales.append((new_width / width, new_height / height))
    jitter = cfg.INPUT.SCALE_JITTER
    low, high = jitter.RANGE if jitter.ENABLED else (1.0, 1.0)
    factors = sorted({*np.linspace(low, high, RANGE_SAMPLES).tolist()})
    return [(x * factor, y * factor) for x, y in scales for factor in factors]


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
    if cfg.INPUT.FIXED_SIZE:
        return {"fixed_size": list(cfg.INPUT.FIXED_SIZE)}
    min_size = cfg.INPUT.MIN_SIZE_TRAIN
    jitter = cfg.INPUT.SCALE_JITTER
    scaled = {"scale_jitter": list(jitter.RANGE), "crop_size": list(jitter.CROP_SIZE)}
    return {
        "min_size": [min_size] if isinstance(min_size, int) else list(min_size),
        "max_size": cfg.INPUT.MAX_SIZE_TRAIN,
        "sampling": cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        **(scaled if jitter.ENABLED else {}),
    }

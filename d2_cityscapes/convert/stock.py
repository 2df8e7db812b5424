"""A trained model as config and weights that Detectron2 loads without this package."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_stock_cfg
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    build_model,
)
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from d2_cityscapes.config import plain
from d2_cityscapes.config_files import config_files
from d2_cityscapes.convert.files import (
    STEPS,
    counted,
    mismatch,
    read_checkpoint,
    write_weights,
)
from d2_cityscapes.convert.kinds import ConversionError
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.files import check_not_read, check_outputs, write_atomically
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.record import class_differences
from d2_cityscapes.modeling.anchors.clustering import AnchorError
from d2_cityscapes.modeling.anchors.generator import resolve_anchors
from d2_cityscapes.modeling.anchors.record import RECORD, REMEDY, anchor_difference, find_records
from d2_cityscapes.run_folder import CONFIG

__all__ = ["convert_to_stock", "stock_config"]

# Every key under MODEL that names a component, with the registry of its names.
COMPONENTS = {
    "META_ARCHITECTURE": META_ARCH_REGISTRY,
    "BACKBONE.NAME": BACKBONE_REGISTRY,
    "PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
# Components of ours that are one of Detectron2 with the same parameters, once trained.
STOCK_COMPONENTS = {
    "StagedRCNN": "GeneralizedRCNN",
    "StagedSegmentor": "SemanticSegmentor",
    "SeamlessPanoptic": "PanopticFPN",
    "GIoUROIHeads": "StandardROIHeads",
    "KMeansAnchorGenerator": "DefaultAnchorGenerator",
}
NOTES = {
    "SeamlessPanoptic": (
        'PanopticFPN: "instances" and "sem_seg" are the same; "panoptic_seg" follows Detectron2\'s '
        "own rules, which leave road out"
    ),
}
# Tensors that a checkpoint may have and the stock model not: anchors, which the config holds, and
# the step counters of batch norm, which some versions of Detectron2 drop when they freeze it.
EXTRA_TENSORS = (f"*.{RECORD}", "*.cell_anchors.*", f"*.{STEPS}")
# Of its metadata Detectron2's demo takes the class names, of things and of all 19 classes.
NAMES_DATASET = "cityscapes_fine_instance_seg_val"


def convert_to_stock(
    input: Path, output: Path, *, config_file: str | Path | None = None
) -> tuple[str, ...]:
    """Write OUTPUT/config.yaml and OUTPUT/model.pth; see `d2_cityscapes.convert.convert_file`.

    Stock Detectron2 (0.6 or later) makes the same predictions with them: bit for bit where the
    config computes and resizes as stock does, otherwise up to rounding, which a line says.

    Args:
        input: a checkpoint of this package's training.
        output: a folder, created if need be.
        config_file: its config; by default the config.yaml beside `input`.

    Raises:
        ConversionError: a model that stock Detectron2 cannot express, or weights of another one.
    """
    source = Path(config_file) if config_file else input.parent / CONFIG
    config, weights = output / CONFIG, output / "model.pth"
    _check_paths((input, source), (config, weights))
    tensors, classes = read_checkpoint(input)
    cfg = load_config(source, train=False)
    anchors = cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE
    check_not_read((config, weights), [*config_files(source), anchors])
    stock = stock_config(cfg, source)
    stock.MODEL.WEIGHTS = str(weights.resolve())
    if class_differences(classes, CITYSCAPES):
        stock.DATASETS.TEST = ()  # the names that demo.py would print are of other classes
    model = _build(stock)
    wanted = model.state_dict()
    _check_tensors(tensors, wanted, f"{input} is not of the model of {source}")
    _check_anchors(tensors, model, input)
    config.unlink(missing_ok=True)  # written last: where it is, it fits the weights
    write_weights(weights, {name: t for name, t in tensors.items() if name in wanted}, classes)
    write_atomically(config, [stock.dump().encode()])
    notes = [NOTES[name] for name in _component_names(cfg).values() if name in NOTES]
    return (
        f"converted {counted(len(wanted), 'tensor')} of {cfg.MODEL.META_ARCHITECTURE}",
        *notes,
        *_rounding(cfg),
        f"wrote {config} and {weights}",
        f"The config names the weights by their full path: {weights.resolve()}",
        "In a checkout of Detectron2, without this package:",
        f"  python demo/demo.py --config-file {config.resolve()} --input IMAGE --output FOLDER",
    )


def _rounding(cfg: CfgNode) -> list[str]:
    """A line where stock, which has none of these options, rounds otherwise."""
    options = {
        "SOLVER.CHANNELS_LAST True": cfg.SOLVER.CHANNELS_LAST,
        "MODEL.RESNETS.FOLD_FROZEN_NORM True": cfg.MODEL.RESNETS.FOLD_FROZEN_NORM,
        "MODEL.COMPILE True": cfg.MODEL.COMPILE,
        f"INPUT.RESIZE_BACKEND {cfg.INPUT.RESIZE_BACKEND}": cfg.INPUT.RESIZE_BACKEND != "pil",
    }
    found = ", ".join(option for option, on in options.items() if on)
    lines = []
    if found:
        lines = [f"Predictions are the same up to rounding: stock Detectron2 has no {found}"]
    if cfg.INPUT.SIZE_DIVISIBILITY:
        lines.append("Stock has no INPUT.SIZE_DIVISIBILITY: it differs near the padded edges")
    return lines


def stock_config(cfg: CfgNode, source: str | Path = "config") -> CfgNode:
    """The same model in the words of stock Detectron2; only what is not its default.

    Args:
        cfg: a config of this package.
        source: its file, for error messages.

    Raises:
        ConversionError: a part of the model has no equivalent.
    """
    for key, name in _component_names(cfg).items():
        if name and not _is_stock(COMPONENTS[key], STOCK_COMPONENTS.get(name, name)):
            raise ConversionError(
                f"{source}: MODEL.{key} {name} has no equivalent in stock Detectron2"
            )
    if cfg.INPUT.FIXED_SIZE:
        raise ConversionError(
            f"{source}: INPUT.FIXED_SIZE {list(cfg.INPUT.FIXED_SIZE)} has no equivalent in stock "
            "Detectron2, whose predictor keeps the shape of an image"
        )
    cfg = resolve_anchors(cfg).clone()
    cfg.defrost()
    for key, name in _component_names(cfg).items():
        _set(cfg.MODEL, key, STOCK_COMPONENTS.get(name, name))
    default = get_stock_cfg()
    stock = CfgNode({"VERSION": default.VERSION})
    for section in ("MODEL", "INPUT"):
        stock[section] = _changed(cfg[section], default[section])
    stock.MODEL.WEIGHTS = ""
    stock.TEST = CfgNode({"DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE})
    stock.DATASETS = CfgNode({"TEST": (NAMES_DATASET,) if _predicts_cityscapes(cfg) else ()})
    return stock


def _check_paths(inputs: tuple[Path, Path], outputs: tuple[Path, Path]) -> None:
    (input, source), folder = inputs, outputs[0].parent
    if not input.is_file():
        raise ConversionError(f"{input}: no such file")
    if not source.is_file():
        raise ConversionError(f"{source}: no such file; name the config in --config-file")
    if folder.exists() and not folder.is_dir():
        raise ConversionError(f"{folder}: is a file; the output is a folder of two files")
    check_outputs(outputs, inputs)


def _component_names(cfg: CfgNode) -> dict[str, str]:
    """Key of `COMPONENTS` -> name in the config."""
    return {key: _get(cfg.MODEL, key) for key in COMPONENTS}


def _is_stock(registry: Registry, name: str) -> bool:
    return name in registry and registry.get(name).__module__.startswith("detectron2.modeling.")


def _predicts_cityscapes(cfg: CfgNode) -> bool:
    """Whether the outputs mean what `NAMES_DATASET` calls them."""
    things = len(CITYSCAPES.things) == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    classes = len(CITYSCAPES.classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return {
        "GeneralizedRCNN": things,
        "SemanticSegmentor": classes,
        "PanopticFPN": things and classes,
    }.get(cfg.MODEL.META_ARCHITECTURE, False)


def _changed(node: CfgNode, default: CfgNode) -> CfgNode:
    """The keys of `default` that have another value in `node`."""
    changed = CfgNode()
    for key, value in default.items():
        if isinstance(value, CfgNode):
            below = _changed(node[key], value)
            if below:
                changed[key] = below
        elif plain(node[key]) != plain(value):
            changed[key] = node[key]
    return changed


def _build(stock: CfgNode) -> nn.Module:
    """The model that stock Detectron2 builds from the config, on the CPU."""
    cfg = get_stock_cfg()
    cfg.merge_from_other_cfg(stock)
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


def _check_tensors(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], message: str
) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    problems = [
        *(f"missing: {name}" for name in _relevant(wanted) if name not in tensors),
        *(f"unknown: {name}" for name in _relevant(tensors) if name not in wanted),
        *(
            f"another shape: {name} is {tuple(tensor.shape)}, not {shapes[name]}"
            for name, tensor in tensors.items()
            if name in shapes and tuple(tensor.shape) != shapes[name]
        ),
    ]
    if problems:
        raise mismatch(message, problems)


def _relevant(names: Iterable[str]) -> list[str]:
    return [n for n in names if not any(fnmatch.fnmatch(n, pattern) for pattern in EXTRA_TENSORS)]


def _check_anchors(tensors: Mapping[str, Tensor], model: nn.Module, input: Path) -> None:
    """The config's anchors must be those that the weights were trained with, if they tell."""
    for name, record in find_records(tensors).items():
        generator: Any = model.get_submodule(name.rpartition(".")[0])
        difference = anchor_difference(record, generator.cell_anchors)
        if difference:
            raise AnchorError(f"{input}: {difference}; {REMEDY}")


def _get(node: CfgNode, key: str) -> Any:
    for part in key.split("."):
        node = node[part]
    return node


def _set(node: CfgNode, key: str, value: Any) -> None:
    *above, last = key.split(".")
    for part in above:
        node = node[part]
    node[last] = value

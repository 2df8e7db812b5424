"""Trainers of stock Detectron2 and of this package, made to do the same work.

The weights are random unless a checkpoint is given. The RoI heads of both sides then get as many
boxes of objects as with a trained RPN, see `objects_proposed`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from d2_cityscapes.benchmark.data import load_stock, mask_format
from d2_cityscapes.data.mapper import CityscapesShardMapper
from d2_cityscapes.data.register import register_cityscapes_shards
from d2_cityscapes.engine.proposed_objects import objects_proposed
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.trainer import Trainer
from d2_cityscapes.labels import CITYSCAPES

__all__ = ["Contender", "TrainingBenchmark", "build_contenders", "check_same_work", "datasets"]

_STOCK, _OURS = "benchmark_training_stock", "benchmark_training_shards"  # datasets
_SAME = (  # settings of both sides: what Detectron2 0.6 has too
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT", "0.0",
    "MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator", "MODEL.WEIGHTS", "",
    "SOLVER.OPTIMIZER", "SGD", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR",
    "SOLVER.BASE_LR", "1e-6", "DATASETS.TEST", "()", "TEST.EXPECTED_RESULTS", "[]", "SEED", "1",
)  # fmt: skip
_FAST = (
    "SOLVER.CHANNELS_LAST", "True", "SOLVER.FUSED", "True", "DATALOADER.PREFETCH", "True",
    "MODEL.RESNETS.FOLD_FROZEN_NORM", "True",
)  # fmt: skip
# How far losses may lie apart, as parts of them. Rounding may lift a score over another one, which
# changes what proposals are drawn; two readers differ in resizing, and by a pixel in boxes.
_TOLERANCE, _TOLERANCE_OF_ROUNDING, _TOLERANCE_OF_READING = 0.02, 0.1, 0.3
_GREY_LEVELS = 2.0  # mean difference of the pixels of two readers


@dataclass(frozen=True)
class TrainingBenchmark:
    """What is compared.

    Attributes:
        cityscapes: root of the PNG tree.
        shards: folder of the shards made of it.
        config: of a Mask R-CNN with frozen batch norms.
        split: "train" or "val".
        stock: which of `STOCK` Detectron2 reads; json-polygons is what it does by itself.
        height: of the images in training, px.
        width: the same.
        batch: images in a step.
        workers: loader processes of each side; 0 for the process that trains.
        steps: timed in each turn.
        rounds: turns of each contender; medians over them are reported.
        amp: "bfloat16" or "float16" for our mixed precision, "" for none. Detectron2's own is
            float16, on a GPU only.
        compile: MODEL.COMPILE for ours.
        weights: a checkpoint of the model; "" for random ones.
        overrides: KEY VALUE pairs for our side.
    """

    cityscapes: Path
    shards: Path
    config: Path
    split: str = "train"
    stock: str = "json-polygons"
    height: int = 512
    width: int = 1024
    batch: int = 2
    workers: int = 0
    steps: int = 4
    rounds: int = 3
    amp: str = "bfloat16"
    compile: bool = False
    weights: str = ""
    overrides: Sequence[str] = ()

    @property
    def what(self) -> str:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        return f"{self.batch} x {self.height}x{self.width} px, {device}, data included"


@dataclass(frozen=True)
class Contender:
    """A trainer and how it computes.

    Attributes:
        trainer: of either side.
        autocast: the type of its mixed precision; None without.
        tf32: whether a GPU may multiply float32 numbers as TF32; set with `autocast`.
        memory: bytes on the GPU, allocated and reserved, at the worst moment of a step.
    """

    trainer: DefaultTrainer
    autocast: torch.dtype | None = None
    tf32: bool = False
    memory: tuple[int, int] = (0, 0)

    def run(self, steps: int) -> None:
        with _tf32(self.tf32), EventStorage():
            for _ in range(steps):
                self.trainer.run_step()
                self.trainer.iter += 1
            _synchronize()

    def losses(self, images: list[dict]) -> dict[str, float]:
        device = self.trainer.cfg.MODEL.DEVICE
        precision = torch.autocast(device, self.autocast, enabled=self.autocast is not None)
        torch.manual_seed(0)  # the same proposals are drawn
        with _tf32(self.tf32), EventStorage(), torch.no_grad(), precision:
            return {name: x.item() for name, x in self.trainer.model(images).items()}


@contextlib.contextmanager
def datasets(settings: TrainingBenchmark) -> Iterator[None]:
    """Both datasets, registered; stock's tree is read once for all of its trainers."""
    dicts = load_stock(settings.cityscapes, settings.split, settings.stock)
    DatasetCatalog.register(_STOCK, lambda: dicts)
    MetadataCatalog.get(_STOCK).set(thing_classes=[c.name for c in CITYSCAPES.things])
    register_cityscapes_shards(_OURS, settings.shards, split=settings.split)
    try:
        yield
    finally:
        for name in (_STOCK, _OURS):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def build_contenders(
    settings: TrainingBenchmark, output: str
) -> tuple[dict[str, Contender], dict[str, Contender]]:
    """The contenders of stock and of ours by name, all with the same weights.

    Args:
        settings: what is compared.
        output: a folder for what a trainer writes when it is built.
    """
    gpu = torch.cuda.is_available()
    full = "fp32, TF32 off" if gpu else "fp32"
    amp, off = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE"), ("SOLVER.AMP.ENABLED", "False")
    fast = (*_FAST, "MODEL.COMPILE", str(settings.compile), *settings.overrides)
    first = _build(DefaultTrainer, _config(settings, _STOCK, output, off))
    weights = first.trainer.model
    if settings.weights:
        DetectionCheckpointer(weights).load(settings.weights)

    def build(kind: type[DefaultTrainer], *options: str) -> Contender:
        dataset = _OURS if kind is Trainer else _STOCK
        return _build(kind, _config(settings, dataset, output, options), weights)

    stock = {f"stock {full}": first}
    ours = {f"ours {full}": build(Trainer, *off, *fast)}
    if gpu:
        for name, side in (("stock", stock), ("ours", ours)):
            side[f"{name} fp32, TF32 on"] = replace(side[f"{name} {full}"], tf32=True)
        if settings.amp:
            stock["stock AMP float16"] = build(DefaultTrainer, *amp, "float16")
    if settings.amp:
        ours[f"ours AMP {settings.amp}"] = build(Trainer, *amp, settings.amp, *fast)
    return stock, ours


def _config(settings: TrainingBenchmark, name: str, output: str, options: Sequence[str]) -> CfgNode:
    own = [
        "DATASETS.TRAIN", f"('{name}',)", "OUTPUT_DIR", output,
        "INPUT.MIN_SIZE_TRAIN", f"({settings.height},)", "INPUT.MAX_SIZE_TRAIN",
        str(settings.width), "SOLVER.IMS_PER_BATCH", str(settings.batch),
        "DATALOADER.NUM_WORKERS", str(settings.workers),
        "MODEL.DEVICE", "cuda" if torch.cuda.is_available() else "cpu",
        "INPUT.MASK_FORMAT", mask_format(settings.stock),
    ]  # fmt: skip
    return load_config(settings.config, [*_SAME, *own, *options], train=False)


def _build(
    kind: type[DefaultTrainer], cfg: CfgNode, weights: torch.nn.Module | None = None
) -> Contender:
    """A trainer that has made its first steps, and the memory that these took on a GPU."""
    seed_all_rng(cfg.SEED)
    before = _gpu_memory(peak=False)
    trainer = kind(cfg)
    if weights is not None:
        trainer.model.load_state_dict(weights.state_dict())
    trainer.model.proposal_generator.register_forward_hook(objects_proposed(cfg))
    autocast = None
    if cfg.SOLVER.AMP.ENABLED:
        autocast = getattr(torch, cfg.SOLVER.AMP.DTYPE)
    contender = Contender(trainer, autocast, tf32=autocast is not None)
    contender.run(2)
    allocated, reserved = (a - b for a, b in zip(_gpu_memory(peak=True), before, strict=True))
    return replace(contender, memory=(allocated, reserved))


def check_same_work(
    settings: TrainingBenchmark, stock: Mapping[str, Contender], ours: Mapping[str, Contender]
) -> None:
    """Compare the losses of all contenders: on the same images, and as each side reads them."""
    start = next(iter(stock.values()))
    first = next(iter(ours.values()))
    dicts = DatasetCatalog.get(_OURS)[: settings.batch]
    by_name = {Path(d["file_name"]).name: d for d in DatasetCatalog.get(_STOCK)}
    mapper = DatasetMapper(start.trainer.cfg, True)
    images = [mapper(by_name[Path(d["file_name"]).name]) for d in dicts]
    own_images = [*map(CityscapesShardMapper(first.trainer.cfg, True), dicts)]
    for image, own in zip(images, own_images, strict=True):
        same_size = image["image"].shape == own["image"].shape
        if not same_size or _difference(image["image"], own["image"]) > _GREY_LEVELS:
            raise RuntimeError(f"{own['file_name']}: not the image that Detectron2 reads")
    weights = start.trainer.model.state_dict()
    for contender in (*stock.values(), *ours.values()):
        contender.trainer.model.load_state_dict(weights)
    expected = start.losses(images)
    for name, contender in ours.items():
        tolerance = _TOLERANCE_OF_ROUNDING if contender.tf32 else _TOLERANCE
        _compare_losses(name, contender.losses(images), expected, tolerance)
    total = {"total": sum(first.losses(own_images).values())}
    _compare_losses(
        "images of shards", total, {"total": sum(expected.values())}, _TOLERANCE_OF_READING
    )


def _compare_losses(
    name: str, found: Mapping[str, float], expected: Mapping[str, float], tolerance: float
) -> None:
    scale = sum(expected.values())
    apart = {n: (found.get(n), x) for n, x in expected.items()}
    for loss, (own, other) in apart.items():
        if own is None or not abs(own - other) <= tolerance * max(abs(other), 0.1 * scale):
            raise RuntimeError(f"{name}: {loss} is {own}, of stock Detectron2 {other}")


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


def _gpu_memory(*, peak: bool) -> tuple[int, int]:
    """Bytes allocated and reserved: the most since the last call without `peak`, or now."""
    if not torch.cuda.is_available():
        return 0, 0
    if peak:
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = allowed
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value

"""Trainers of stock Detectron2 and of this package, made to do the same work.

The weights are random unless a checkpoint is given. The RoI heads of both sides then get as many
boxes of objects as with a trained RPN, see `objects_proposed`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from d2_cityscapes.benchmark.device import StepClock, default_device, device_name, is_gpu
from d2_cityscapes.benchmark.proposals import ProposalTap
from d2_cityscapes.benchmark.stock_tree import mask_format, read_tree
from d2_cityscapes.data.register import register_cityscapes_shards
from d2_cityscapes.engine.checkpoints.address import for_detectron2
from d2_cityscapes.engine.computing import tf32
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.trainer import Trainer
from d2_cityscapes.labels import CITYSCAPES

__all__ = [
    "FAST",
    "OURS",
    "STOCK_TREE",
    "Contender",
    "Entry",
    "TrainingBenchmark",
    "amp",
    "build",
    "datasets",
    "entries",
    "start_weights",
]

STOCK_TREE, OURS = "benchmark_training_stock", "benchmark_training_shards"  # datasets
_SAME = (  # settings of both sides: what Detectron2 0.6 has too
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT", "0.0",
    "MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator", "MODEL.WEIGHTS", "",
    "SOLVER.OPTIMIZER", "SGD", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR",
    "SOLVER.BASE_LR", "1e-6", "DATASETS.TEST", "()", "TEST.EXPECTED_RESULTS", "[]", "SEED", "1",
)  # fmt: skip
FAST = (
    "SOLVER.CHANNELS_LAST", "True", "SOLVER.FUSED", "True", "DATALOADER.PREFETCH", "True",
    "MODEL.RESNETS.FOLD_FROZEN_NORM", "True", "MODEL.WAIT_FREE", "True",
)  # fmt: skip


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
        rounds: turns of each contender.
        amp: "bfloat16" or "float16" for our mixed precision, "" for none. Detectron2's own is
            float16, on a GPU only.
        compile: MODEL.COMPILE for ours.
        weights: a checkpoint of the model; "" for random ones.
        overrides: KEY VALUE pairs for our side.
        device: "cpu", "cuda", "cuda:1".
        profile: look for the share of the time in which a GPU is busy.
        common: KEY VALUE pairs for both sides, of keys that stock has too.
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
    device: str = ""
    profile: bool = True
    common: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", self.device or default_device())

    @property
    def what(self) -> str:
        size = f"{self.batch} x {self.height}x{self.width} px"
        return f"{size}, {device_name(self.device)}, data included"


@dataclass(frozen=True)
class Entry:
    """One that takes part.

    Attributes:
        name: begins with "stock" or "ours", which says whose trainer it is.
        options: KEY VALUE pairs, the last in force.
        tf32: whether a GPU may multiply float32 numbers as TF32.
    """

    name: str
    options: tuple[str, ...]
    tf32: bool = False

    @property
    def ours(self) -> bool:
        return self.name.startswith("ours")


class _StockTrainer(DefaultTrainer):
    def build_writers(self) -> list:
        return []  # nothing of a benchmark is a run to look at


class _OurTrainer(Trainer):
    def build_writers(self) -> list:
        return []


class Contender:
    """An entry's trainer at work."""

    def __init__(self, entry: Entry, trainer: DefaultTrainer) -> None:
        self.entry, self.trainer = entry, trainer
        self.tap = ProposalTap(trainer.cfg, trainer.model)
        self._device = trainer.cfg.MODEL.DEVICE

    def run(self, steps: int) -> tuple[list[float], float | None]:
        """Train so many steps.

        Returns:
            Seconds of each step, and the mean of those in which it waited for its batch, where the
            trainer says.
        """
        with tf32(self.entry.tf32), EventStorage() as storage:
            clock = StepClock(self._device)
            for _ in range(steps):
                self.trainer.run_step()
                self.trainer.iter += 1
                clock.tick()
            seconds = clock.seconds()
            waited = storage.histories().get("data_time")
            return seconds, None if waited is None else waited.global_avg()

    def losses(self, images: list[dict]) -> dict[str, float]:
        """Losses by name, of the weights that it has now."""
        amp = self.trainer.cfg.SOLVER.AMP
        precision = torch.autocast(
            torch.device(self._device).type, getattr(torch, amp.DTYPE), enabled=amp.ENABLED
        )
        torch.manual_seed(0)  # the same proposals are drawn
        with tf32(self.entry.tf32), EventStorage(), torch.no_grad(), precision:
            return {name: x.item() for name, x in self.trainer.model(images).items()}


@contextlib.contextmanager
def datasets(settings: TrainingBenchmark) -> Iterator[None]:
    """Both datasets, registered; stock's tree is read once for all of its trainers."""
    dicts = read_tree(settings.cityscapes, settings.split, settings.stock)
    DatasetCatalog.register(STOCK_TREE, lambda: dicts)
    MetadataCatalog.get(STOCK_TREE).set(thing_classes=[c.name for c in CITYSCAPES.things])
    register_cityscapes_shards(OURS, settings.shards, split=settings.split)
    try:
        yield
    finally:
        for name in (STOCK_TREE, OURS):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def amp(dtype: str) -> tuple[str, ...]:
    """KEY VALUE pairs of mixed precision: "float16", "bfloat16", or "" for none."""
    if not dtype:
        return ("SOLVER.AMP.ENABLED", "False")
    return ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype)


def entries(settings: TrainingBenchmark) -> list[Entry]:
    """Those that `benchmark_training` compares; the first one is what all have to equal."""
    fast = (*FAST, "MODEL.COMPILE", str(settings.compile), *settings.overrides)
    gpu = is_gpu(settings.device)
    full = "fp32, TF32 off" if gpu else "fp32"
    found = [Entry(f"stock {full}", amp("")), Entry(f"ours {full}", (*amp(""), *fast))]
    if gpu:
        found.append(Entry("stock fp32, TF32 on", amp(""), tf32=True))
        found.append(Entry("ours fp32, TF32 on", (*amp(""), *fast), tf32=True))
        if settings.amp:
            found.append(Entry("stock AMP float16", amp("float16"), tf32=True))
    if settings.amp:
        name = f"ours AMP {settings.amp}"
        found.append(Entry(name, (*amp(settings.amp), *fast), tf32=True))
    return found


def build(
    settings: TrainingBenchmark, entry: Entry, output: str, weights: Mapping | None
) -> Contender:
    """The trainer of an entry.

    Args:
        settings: what is compared.
        entry: who.
        output: a folder for what a trainer writes when it is built.
        weights: state of the model to begin with; None for the random one of SEED.
    """
    kind = _OurTrainer if entry.ours else _StockTrainer
    cfg = _config(settings, entry, output)
    seed_all_rng(cfg.SEED)
    trainer = kind(cfg)
    if weights is not None:
        trainer.model.load_state_dict(weights)
    return Contender(entry, trainer)


def start_weights(settings: TrainingBenchmark, output: str) -> dict[str, torch.Tensor]:
    """What every contender begins with, on the CPU."""
    cfg = _config(settings, Entry("stock", ("MODEL.DEVICE", "cpu")), output)
    seed_all_rng(cfg.SEED)
    model = DefaultTrainer.build_model(cfg)
    if settings.weights:
        DetectionCheckpointer(model).load(for_detectron2(settings.weights))
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def _config(settings: TrainingBenchmark, entry: Entry, output: str) -> CfgNode:
    own = [
        "DATASETS.TRAIN", f"('{OURS if entry.ours else STOCK_TREE}',)", "OUTPUT_DIR", output,
        "INPUT.MIN_SIZE_TRAIN", f"({settings.height},)", "INPUT.MAX_SIZE_TRAIN",
        str(settings.width), "SOLVER.IMS_PER_BATCH", str(settings.batch),
        "DATALOADER.NUM_WORKERS", str(settings.workers), "MODEL.DEVICE", settings.device,
        "INPUT.MASK_FORMAT", mask_format(settings.stock),
    ]  # fmt: skip
    if not entry.ours:
        own += ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]
    opts = [*_SAME, *own, *settings.common, *entry.options]
    return load_config(settings.config, opts, train=False)

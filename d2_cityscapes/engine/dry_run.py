"""What a training of a config would need, found by one step of it that leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2_cityscapes.data.loader import build_train_loader
from d2_cityscapes.data.mapper import PASTE_FROM, CityscapesShardMapper
from d2_cityscapes.data.register import label_table_of
from d2_cityscapes.data.training_set import training_set
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer
from d2_cityscapes.engine.devices import device_runtime, peak_memory
from d2_cityscapes.engine.distributed import scale_to_world
from d2_cityscapes.engine.out_of_memory import GpuMemoryError
from d2_cityscapes.engine.proposed_objects import objects_proposed
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.step.activations import saved_activations
from d2_cityscapes.engine.step.optimizer import build_optimizer, optimized_parameters
from d2_cityscapes.engine.step.training_step import build_training_step
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.memory import is_out_of_memory
from d2_cityscapes.modeling.backbones.weights import without_timm_weights
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.freezing.freeze import (
    FreezeReport,
    freeze_report,
    later_parameters_on,
    plan_freezing,
)
from d2_cityscapes.modeling.freezing.guard import await_schedule, keep_in_eval
from d2_cityscapes.modeling.freezing.state import norm_layers

__all__ = ["DryRun", "dry_run", "largest_that_fits"]

_MOST = 512  # images of a batch, where the search ends
_MIB = 2**20


@dataclass(frozen=True)
class DryRun:
    """What `dry_run` found, for one process.

    Attributes:
        report: parameters that are frozen and that train.
        batch: images in a batch, by the config.
        images: images of the batch that was measured: as many, unless they did not fit.
        image_size: (height, width) of the largest of them, in pixels.
        objects: in the most crowded of them; 0 where the model is not trained on objects.
        precision: what the network computes in.
        accumulate_steps: batches in a step.
        processes: how many train together.
        sizes: bytes of what fills the memory, by name.
        peak: bytes that tensors held at the worst moment of a step, and that were reserved for
            them; None on the CPU.
        largest_batch: images of the largest batch that fits; None on the CPU.
    """

    report: FreezeReport
    batch: int
    images: int
    image_size: tuple[int, int]
    precision: str
    accumulate_steps: int
    processes: int
    sizes: Mapping[str, int]
    objects: int = 0
    peak: tuple[int, int] | None = None
    largest_batch: int | None = None

    def table(self) -> str:
        """All of it, for the screen."""
        trains, frozen = self.report.trainable_parameters, self.report.frozen_parameters
        height, width = self.image_size
        lines = [
            self.report.table(),
            f"{100 * trains / (trains + frozen):.1f} % of the parameters train",
            "",
            f"measured with a batch of {_count(self.images)} of {height} x {width} px, in "
            f"{self.precision}{self._objects_text()}",
            f"a step is {self._step_text()}",
            "",
            f"{'memory':<38}  {'bytes':>16}  {'MiB':>10}",
            *(_row(name, size) for name, size in self.sizes.items()),
        ]
        if self.peak is None:
            lines.append(_row("estimate for a GPU: sum of the above", sum(self.sizes.values())))
            return "\n".join(lines)
        lines += [_row("peak of a step", self.peak[0]), _row("reserved for it", self.peak[1])]
        if self.images < self.batch:
            lines.append(f"SOLVER.IMS_PER_BATCH {self.batch * self.processes} does not fit")
        fits, more = self.largest_batch or 0, ""
        if fits >= _MOST:
            more = " or more"
        lines.append(f"largest SOLVER.IMS_PER_BATCH that fits: {fits * self.processes}{more}")
        return "\n".join(lines)

    def _objects_text(self) -> str:
        if not self.objects:
            return ""
        return f"; of DATASETS.TRAIN those with most objects, up to {self.objects}"

    def _step_text(self) -> str:
        effective = self.batch * self.processes * self.accumulate_steps
        text = f"{self.accumulate_steps} x {_count(self.batch)}"
        if self.processes > 1:
            text += f" on each of {self.processes} processes"
        return f"{text}: an effective batch of {effective}"


def dry_run(cfg: CfgNode, *, processes: int = 1) -> DryRun:
    """Build model, loader and optimizer, and train on the images with most objects, in memory.

    One step is enough on the CPU. On a GPU more of them, with batches of other sizes, find the
    largest that fits.

    The images are those of DATASETS.TRAIN with most objects, as matching anchors with these takes
    memory too. They have the largest size of INPUT.MIN_SIZE_TRAIN, and their proposals enough boxes
    of objects for the full share of foreground (ROI_HEADS.POSITIVE_FRACTION), as those of a trained
    network: with random weights the mask head would see few. All that MODEL.FREEZE.SCHEDULE
    unfreezes trains. No file is written.

    Args:
        cfg: as `train` takes it.
        processes: how many would train; this one stands for one of them.

    Raises:
        D2CityscapesError: what training would refuse too, or not even one image fits.
    """
    cfg = _settings(cfg, processes)
    seed_all_rng(cfg.SEED)
    model = build_model(cfg)
    _thaw(cfg, model)
    optimizer = build_optimizer(cfg, model)
    build_train_loader(cfg)  # which refuses what training would refuse
    batch = _crowded(cfg)
    optimized = optimized_parameters(optimizer)
    if Path(cfg.MODEL.WEIGHTS).is_file():  # not "", nor a file to be fetched first
        checkpointer = Checkpointer(
            model,
            exclude=cfg.MODEL.WEIGHTS_EXCLUDE,
            trained=optimized,
            table=label_table_of(cfg.DATASETS.TRAIN),
            other_anchors=cfg.MODEL.ANCHOR_GENERATOR.KMEANS.ALLOW_OTHER,
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    rpn = getattr(model, "proposal_generator", None)
    if isinstance(rpn, nn.Module):
        rpn.register_forward_hook(objects_proposed(cfg))
    average = [torch.empty_like(p) for p in optimized] if cfg.SOLVER.EMA_DECAY > 0 else []
    device = torch.device(cfg.MODEL.DEVICE)
    on_gpu = peak_memory(device) is not None

    def run_step(images: int) -> None:
        loader = itertools.repeat(list(itertools.islice(itertools.cycle(batch), images)))
        step = build_training_step(cfg, model, loader, optimizer)
        step.iter = 0
        with EventStorage():
            step.run_step()

    def fits(images: int) -> bool:
        return _without_running_out(lambda: run_step(images), optimizer, device)

    with later_parameters_on(model), _finite():
        _make_states(optimizer)
        largest = largest_that_fits(fits, len(batch), _MOST) if on_gpu else None
        if largest == 0:
            raise GpuMemoryError(f"a training step with one image does not fit {device}")
        images = min(len(batch), largest or len(batch))
        with saved_activations(model) as saved:
            run_step(images)
        sizes = _sizes(model, optimizer)
        if average:
            sizes["average of the weights"] = _bytes(average)
        sizes["saved activations of a batch"] = saved()
        return DryRun(
            report=freeze_report(model, []),
            batch=len(batch),
            images=images,
            image_size=_largest(batch),
            objects=max(len(x.get("instances", ())) for x in batch),
            precision=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "float32",
            accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
            processes=processes,
            sizes=sizes,
            peak=_peak(lambda: run_step(images), device) if on_gpu else None,
            largest_batch=largest,
        )


def largest_that_fits(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The largest number up to `most` that fits, 0 for none: doubled, then halved in between.

    Args:
        fits: whether a number does; where it does, all smaller ones do.
        start: the first number to try.
        most: where the search ends.
    """
    good, number = 0, min(start, most)
    while fits(number):
        good = number
        if number == most:
            return most
        number = min(2 * number, most)
    bad = number
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def _settings(cfg: CfgNode, processes: int) -> CfgNode:
    """The config of one of the processes, for images of the largest size."""
    cfg = without_timm_weights(scale_to_world(cfg, processes)).clone()  # which may be far away
    cfg.defrost()
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}: not a multiple of the {processes} "
            "processes"
        )
    cfg.SOLVER.IMS_PER_BATCH //= processes
    cfg.INPUT.MIN_SIZE_TRAIN = (max(cfg.INPUT.MIN_SIZE_TRAIN),)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.PREFETCH = False
    cfg.SEED = max(cfg.SEED, 0)
    cfg.freeze()
    return cfg


def _thaw(cfg: CfgNode, model: nn.Module) -> None:
    """The norms too as at the end of MODEL.FREEZE.SCHEDULE, when most of the model trains."""
    freeze = cfg.MODEL.FREEZE
    if freeze.SCHEDULE:
        frozen = plan_freezing(model, freeze.MODULES, freeze.SCHEDULE).phases[-1].frozen
        keep_in_eval(model, norm_layers(model, frozen) if freeze.NORM_EVAL else ())
        await_schedule(model, False)


def _make_states(optimizer: torch.optim.Optimizer) -> None:
    """A step with gradients of 0, as an optimizer makes its states with the first one."""
    for parameter in optimized_parameters(optimizer):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _without_running_out(
    run: Callable[[], None], optimizer: torch.optim.Optimizer, device: torch.device
) -> bool:
    """Whether it runs in the memory of the GPU, which is emptied afterwards."""
    fits = True
    try:
        run()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fits = False  # and here its traceback lets go of what the step held
    optimizer.zero_grad()
    gc.collect()
    runtime: Any = device_runtime(device)
    runtime.empty_cache()
    return fits


@contextlib.contextmanager
def _finite() -> Iterator[None]:
    try:
        yield
    except FloatingPointError as error:
        reason = str(error).partition("\n")[0]
        raise D2CityscapesError(
            f"dry run: {reason.rstrip('.!')}; give it MODEL.WEIGHTS of a trained model"
        ) from error


def _peak(run: Callable[[], None], device: torch.device) -> tuple[int, int]:
    runtime: Any = device_runtime(device)
    runtime.empty_cache()
    runtime.reset_peak_memory_stats(device)
    run()
    runtime.synchronize(device)
    return peak_memory(device) or (0, 0)


def _crowded(cfg: CfgNode) -> list[dict]:
    """A batch of the images with most objects, from most on. Their pixels alone are read.

    Images that DATALOADER.RANDOM_SUBSET_RATIO leaves out may be among them.
    """
    dicts, _ = training_set(cfg)
    counts = [sum(not a.get("iscrowd") for a in d.get("annotations", ())) for d in dicts]
    most = sorted(range(len(dicts)), key=lambda i: -counts[i])[: cfg.SOLVER.IMS_PER_BATCH]
    mapper = CityscapesShardMapper(cfg, True)
    light = [{k: v for k, v in dicts[i].items() if k != "annotations"} for i in most]
    batch = [mapper({**own, PASTE_FROM: own}) for own in light]
    return list(itertools.islice(itertools.cycle(batch), cfg.SOLVER.IMS_PER_BATCH))


def _sizes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    states = (x for state in optimizer.state.values() for x in state.values())
    return {
        "parameters": _bytes(parameters),
        "buffers": _bytes(model.buffers()),
        "gradients": _bytes(trained),
        "optimizer state": _bytes(x for x in states if isinstance(x, Tensor)),
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _largest(batch: list[dict]) -> tuple[int, int]:
    return max((tuple(x["image"].shape[-2:]) for x in batch), key=lambda size: size[0] * size[1])


def _count(images: int) -> str:
    return f"{images} image" if images == 1 else f"{images} images"


def _row(name: str, size: int) -> str:
    return f"{name:<38}  {size:>16,}  {size / _MIB:>10,.1f}"

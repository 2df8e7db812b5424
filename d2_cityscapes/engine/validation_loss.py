"""The training losses on images that are not trained on, while a model trains."""

from __future__ import annotations

import contextlib
import logging
import math
import zlib
from collections.abc import Iterable, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from d2_cityscapes.data.augmentation import build_augmentation
from d2_cityscapes.data.loader import STEP, preserved_generators, seed_generators
from d2_cityscapes.data.mapper import CityscapesShardMapper
from d2_cityscapes.engine.devices import random_state_kept
from d2_cityscapes.engine.setup import validation_dataset
from d2_cityscapes.engine.step.losses import StepLosses
from d2_cityscapes.evaluation.shard_evaluator import each_once
from d2_cityscapes.modeling.execution.deferred_scalars import flush_scalars, read_later
from d2_cityscapes.modeling.freezing.freeze import unwrap

__all__ = ["ValidationLossHook", "build_validation_loader", "validation_losses"]

logger = logging.getLogger(__name__)

_VALIDATION = STEP + 1  # what the seed is used for, see `seed_generators`


class ValidationLossHook(HookBase):
    """Logs the means of the training losses over a validation set as val/<name>.

    With their sum, val/total_loss, they stand beside the training losses of the same iteration. The
    training run goes on as it would without the hook, on the CPU to the last bit.

    Args:
        period: iterations between two validations; another one follows the last iteration.
        loader: this rank's share of the validation set, see `validation_losses`.
    """

    def __init__(self, period: int, loader: Iterable[list[dict]]) -> None:
        self._period = period
        self._loader = loader

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period and done != self.trainer.max_iter:
            return
        losses = validation_losses(unwrap(self.trainer.model), self._loader)
        losses["total_loss"] = sum(losses.values())
        scalars = {f"val/{name}": value for name, value in losses.items()}
        self.trainer.storage.put_scalars(**scalars, smoothing_hint=False)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        logger.info("validation after iteration %d: %s", done, shown)


def build_validation_loader(cfg: CfgNode) -> Iterable[list[dict]]:
    """Images of `validation_dataset` with their training targets, one a batch, shared by the ranks.

    They have the size of test images, are not augmented, and come in the order of the dataset.
    """
    mapper = CityscapesShardMapper(cfg, True, augmentations=build_augmentation(cfg, False))
    return build_detection_test_loader(cfg, validation_dataset(cfg), mapper=mapper)


def validation_losses(model: nn.Module, loader: Iterable[list[dict]]) -> dict[str, float]:
    """Means over images of the losses that a model computes in training mode.

    Norm layers keep their statistics, dropout is off, and what the model samples at random follows
    from the image: the same weights give the same numbers, on any number of ranks. Neither the
    model nor any random generator is left changed.

    Args:
        model: takes a batch and returns, in training mode, its losses by name.
        loader: batches of one model input with "image_id"; of all ranks together the whole set, an
            image that comes twice counting once.

    Returns:
        Loss name -> mean, the same on every rank.
    """
    found: dict[str, StepLosses] = {}
    # The storage takes what the model logs while it trains.
    with _loss_mode(model), _all_generators(model), EventStorage() as storage, torch.no_grad():
        for batch in loader:
            image_id = batch[0]["image_id"]
            seed_generators(0, _VALIDATION, zlib.crc32(image_id.encode()), gpu=True)
            found[image_id] = losses = StepLosses(storage.iter)
            losses.add(batch, model(batch))
            read_later(losses.values(), losses.read)
            flush_scalars(storage)
        flush_scalars(storage, wait=True)
    own = {
        image_id: {name: loss.item() for name, loss in losses.means().items()}
        for image_id, losses in found.items()
    }
    images = each_once(comm.all_gather(own)).values()
    names = sorted({name for losses in images for name in losses})
    return {name: math.fsum(losses[name] for losses in images) / len(images) for name in names}


@contextlib.contextmanager
def _loss_mode(model: nn.Module) -> Iterator[None]:
    """Training mode but for norms and dropout; then every module as it was."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module in modes:
        if isinstance(module, _NormBase | _DropoutNd):
            module.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _all_generators(model: nn.Module) -> Iterator[None]:
    """Put the random generators back as they were, that of the model's GPU too."""
    device = next(model.parameters()).device
    with preserved_generators(), random_state_kept(device):
        yield

"""Optimizer steps over several batches, for a large effective batch on one card."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2_cityscapes.engine.setup import ConfigError

__all__ = ["AccumulatingAMPTrainer", "AccumulatingTrainer", "accumulating", "build_training_step"]


class _Accumulating:
    """The step: the mean of the losses of `accumulate_steps` batches, one update.

    Several processes exchange gradients once, with the last batch.
    """

    accumulate_steps = 1

    def run_step(self) -> None:
        data_time = 0.0
        means: dict[str, Tensor] = {}
        self.optimizer.zero_grad()
        for number in range(1, self.accumulate_steps + 1):
            started = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - started
            with _synchronised(self.model, number == self.accumulate_steps):
                with self._precision():
                    losses = self.model(batch)
                parts = {name: loss / self.accumulate_steps for name, loss in losses.items()}
                self._backward(sum(parts.values()))
            for name, part in parts.items():
                means[name] = means.get(name, 0) + part.detach()
        self._write_metrics(means, data_time)
        self._update()

    def _precision(self) -> AbstractContextManager:
        return nullcontext()

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()


class AccumulatingTrainer(_Accumulating, SimpleTrainer):
    """Detectron2's `SimpleTrainer`, `accumulate_steps` batches a step."""


class AccumulatingAMPTrainer(_Accumulating, AMPTrainer):
    """Detectron2's `AMPTrainer`, `accumulate_steps` batches a step.

    Where a gradient overflows in any of them, the whole step is left out.
    """

    def _precision(self) -> AbstractContextManager:
        return torch.autocast("cuda", dtype=getattr(self, "precision", torch.float16))

    def _backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def accumulating(trainer: SimpleTrainer, steps: int) -> SimpleTrainer:
    """A trainer like Detectron2's `SimpleTrainer` or `AMPTrainer`, `steps` batches a step.

    Args:
        trainer: has not run yet.
        steps: 1 returns it as it is.

    Raises:
        ConfigError: fewer than 1.
    """
    if steps < 1:
        raise ConfigError(f"SOLVER.ACCUMULATE_STEPS {steps}: use 1 or more")
    if steps == 1:
        return trainer
    kind = AccumulatingAMPTrainer if isinstance(trainer, AMPTrainer) else AccumulatingTrainer
    found = kind(trainer.model, trainer.data_loader, trainer.optimizer)
    found.accumulate_steps = steps
    return found


@contextlib.contextmanager
def _synchronised(model: nn.Module, now: bool) -> Iterator[None]:
    """Whether the gradients of this batch are exchanged between processes."""
    wait = isinstance(model, DistributedDataParallel) and not now
    with model.no_sync() if wait else nullcontext():
        yield


def build_training_step(cfg, model, data_loader, optimizer) -> SimpleTrainer:
    """The step of SOLVER.ACCUMULATE_STEPS and AMP."""
    kind = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
    return accumulating(kind(model, data_loader, optimizer), cfg.SOLVER.ACCUMULATE_STEPS)

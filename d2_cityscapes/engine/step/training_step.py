"""One optimizer step: precision, accumulation of gradients, and what is not finite."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from d2_cityscapes.engine.out_of_memory import during, images_in_words
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.step.losses import StepLosses, files_of
from d2_cityscapes.engine.step.nonfinite import PREDICTIONS, SkippedSteps, Trouble
from d2_cityscapes.engine.step.optimizer import by_kind, largest_gradient
from d2_cityscapes.modeling.execution.deferred_scalars import as_of, flush_scalars, read_later

__all__ = ["TrainingStep", "build_training_step", "check_training_step", "norm_buffers"]

# SOLVER.AMP.DTYPE -> what autocast computes in
_PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainingStep(SimpleTrainer):
    """Detectron2's `SimpleTrainer` with the options of SOLVER; without any, the same to the bit.

    A step is the mean of the losses of `accumulate_steps` batches and one update. Several processes
    exchange gradients once, with the last batch.

    Where `max_skipped_steps` is above 0, a step with a loss or gradient that is not finite is left
    out, on all ranks if it is so on one: weights, optimizer and norm statistics stay, nothing of it
    is logged but the scalar "skipped_steps", and the iteration counts. So is one in which the model
    raises FloatingPointError, as Detectron2's RPN does for boxes that are not finite. The
    optimizer's ``step`` is called for steps that are taken, and only then.

    With a gradient scaler gradients may overflow while it looks for its scale: as in Detectron2
    such a step is left out with its losses logged. It is no trouble unless the scale is down to 1,
    where the scaling cannot be the reason.

    With `max_skipped_steps` or a gradient scaler the host waits once a step for the gradients, and
    reads the losses with them, before the optimizer steps. Else it never waits on a GPU for what it
    has just queued: losses are read, looked at and logged when the next step is queued, see
    `read_later`, or with several processes by `settle`. A step that was not finite has then been
    taken; but nothing is made of it.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate_steps: int = 1,
        autocast: torch.dtype | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        max_skipped_steps: int = 0,
    ) -> None:
        """
        Args:
            model: from a batch to a dict of scalar losses, data-parallel or not.
            data_loader: batches without end, lists of dicts with "file_name".
            optimizer: finds its gradients unscaled.
            accumulate_steps: batches a step.
            autocast: what the forward pass computes in; None for what the model is.
            grad_scaler: for float16, whose gradients underflow.
            max_skipped_steps: steps in a row that may be left out before training fails.
        """
        super().__init__(model, data_loader, optimizer)
        self.accumulate_steps = accumulate_steps
        self.grad_scaler = grad_scaler
        self.max_skipped_steps = max_skipped_steps
        self._autocast = autocast
        self._device_type = next(model.parameters()).device.type
        self._asks_first = bool(max_skipped_steps) or grad_scaler is not None
        self._reads_later = self._device_type == "cuda" and not self._asks_first
        self._skipped = SkippedSteps(max_skipped_steps)
        self._statistics = by_kind(norm_buffers(model).values()) if max_skipped_steps else []
        self._before = [[torch.empty_like(buffer) for buffer in kind] for kind in self._statistics]
        # steps that were taken: their losses are on their way; and: not yet logged
        self._queued: list[StepLosses] = []
        self._arrived: list[StepLosses] = []

    def run_step(self) -> None:
        """
        Raises:
            NonFiniteError: more than `max_skipped_steps` in a row were to be left out. Without any,
                and where losses are read later, it may be about an earlier step.
        """
        assert self.model.training, "[TrainingStep] model was changed to eval mode!"
        for before, now in zip(self._before, self._statistics, strict=True):
            torch._foreach_copy_(before, now)
        losses, complete = self._backward()
        if complete and self.grad_scaler is not None:
            # before the optimizer, whose clipping is of true gradients, fused or not
            self.grad_scaler.unscale_(self.optimizer)
        if self._reads_later:
            self._queued.append(losses)
            read_later(losses.values(), lambda numbers: self._arrive(losses, numbers))
            self.optimizer.step()
        elif self._is_to_be_taken(losses, complete):
            self.optimizer.step()
        if self.grad_scaler is not None and complete:
            self.grad_scaler.update()
        flush_scalars(get_event_storage())

    def settle(self) -> None:
        """Log all steps so far, and look whether they were finite, for which the host may wait.

        Of several processes all have to call it, behind the same step, before anything is made of
        these steps: a checkpoint, an evaluation, a line of the log.

        Raises:
            NonFiniteError: one of them was not.
        """
        flush_scalars(get_event_storage(), wait=True)
        if self._reads_later and comm.get_world_size() > 1:
            self._log_arrived()

    def state_dict(self) -> dict:
        """
        Raises:
            NonFiniteError: a step of this rank was not finite, so that its weights are not.
        """
        self._check_unsettled()
        state = super().state_dict()
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        if self.max_skipped_steps:
            state["skipped"] = self._skipped.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """What a checkpoint of a run without these options lacks begins anew."""
        super().load_state_dict(state_dict)
        if self.grad_scaler is not None and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        if self.max_skipped_steps and "skipped" in state_dict:
            self._skipped.load_state_dict(state_dict["skipped"])

    def _backward(self) -> tuple[StepLosses, bool]:
        """The gradients of all batches.

        Returns:
            The losses, and whether there are gradients: not where a forward pass failed, which ends
            the step on all ranks.
        """
        found, complete = StepLosses(self.iter), True
        for number in range(1, self.accumulate_steps + 1):
            started = time.perf_counter()
            data = next(self._data_loader_iter)
            found.data_time += time.perf_counter() - started
            if not complete:  # every step takes its batches
                continue
            last = number == self.accumulate_steps
            with during(partial(images_in_words, data)), _exchanged(self.model, last):
                losses = self._forward(data)
                found.add(data, losses)
                complete = not self._fails_somewhere(losses)
                if complete:
                    if number == 1:
                        self.optimizer.zero_grad()
                    self._scaled(sum(losses.values()) / self.accumulate_steps).backward()
        return found, complete

    def _forward(self, data: Any) -> dict[str, Tensor]:
        """Losses by name; none where the model finds that its predictions are not finite."""
        try:
            with self._precision():
                losses = self.model(data)
        except FloatingPointError:
            self._check_unsettled()  # which may have spoilt the weights
            if not self.max_skipped_steps:
                self._skipped.add(self.iter, [Trouble((PREDICTIONS,), files_of(data))])
            return {}
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _fails_somewhere(self, losses: dict[str, Tensor]) -> bool:
        """Whether a rank has no losses: the others would wait for its gradients for ever."""
        return bool(self.max_skipped_steps) and not all(comm.all_gather(bool(losses)))

    def _scaled(self, loss: Any) -> Tensor:
        return loss if self.grad_scaler is None else self.grad_scaler.scale(loss)

    def _precision(self) -> AbstractContextManager:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._device_type, dtype=self._autocast)

    def _is_to_be_taken(self, losses: StepLosses, complete: bool) -> bool:
        """Log a step or leave it out, before the optimizer makes it: by one wait for the device.

        Args:
            losses: of the step.
            complete: there are gradients, unscaled ones.
        """
        values, finite = losses.values(), complete
        if complete and self._asks_first:
            values = torch.cat([values, largest_gradient(self.optimizer).reshape(1)])
        numbers, well = _read(values) if complete else (values.tolist(), False)
        if complete and self._asks_first:
            finite = math.isfinite(numbers.pop())
        losses.read(numbers)
        if not well and self._leaves_out(losses, gradients=complete and not finite):
            return False
        self._write_metrics(losses.means(), losses.data_time)
        if finite:
            self._skipped.end_streak()
        return finite

    def _leaves_out(self, losses: StepLosses, *, gradients: bool) -> bool:
        """Whether a rank has found trouble, and so all of them: they take the same steps.

        Args:
            losses: of this rank.
            gradients: they are not finite.
        """
        own = losses.trouble(gradients=gradients and self._no_overflow())
        found = [trouble for trouble in comm.all_gather(own) if trouble is not None]
        if not found:
            return False
        for now, before in zip(self._statistics, self._before, strict=True):
            torch._foreach_copy_(now, before)
        self._skipped.add(self.iter, found)
        get_event_storage().put_scalar("skipped_steps", self._skipped.total, smoothing_hint=False)
        return True

    def _no_overflow(self) -> bool:
        """Whether gradients that are not finite cannot be blamed on their scaling."""
        if not self.max_skipped_steps:
            return False
        return self.grad_scaler is None or self.grad_scaler.get_scale() <= 1

    def _arrive(self, losses: StepLosses, numbers: list[float]) -> None:
        self._queued.remove(losses)
        losses.read(numbers)
        self._arrived.append(losses)
        if comm.get_world_size() == 1:
            self._log_arrived()

    def _log_arrived(self) -> None:
        """Log the steps whose losses have arrived, on all ranks, up to one that was not finite."""
        steps, self._arrived = self._arrived, []
        ranks = comm.all_gather([losses.trouble() for losses in steps])
        for losses, found in zip(steps, zip(*ranks, strict=True), strict=True):
            troubles = [trouble for trouble in found if trouble is not None]
            if troubles:
                self._skipped.add(losses.iteration, troubles)
            with as_of(get_event_storage(), losses.iteration):
                self._write_metrics(losses.means(), losses.data_time)

    def _check_unsettled(self) -> None:
        """Raise `NonFiniteError` if this rank has taken a step with losses that are not finite."""
        for losses in (*self._arrived, *self._queued):
            losses.read(losses.values().tolist())
            trouble = losses.trouble()
            if trouble is not None:
                self._skipped.add(losses.iteration, [trouble])


def build_training_step(
    cfg: CfgNode, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer
) -> TrainingStep:
    """The step of SOLVER.ACCUMULATE_STEPS, AMP and MAX_SKIPPED_STEPS.

    Raises:
        ConfigError: see `check_training_step`.
    """
    check_training_step(cfg)
    solver = cfg.SOLVER
    precision = _PRECISIONS[solver.AMP.DTYPE] if solver.AMP.ENABLED else None
    device_type = next(model.parameters()).device.type
    return TrainingStep(
        model,
        data_loader,
        optimizer,
        accumulate_steps=solver.ACCUMULATE_STEPS,
        autocast=precision,
        grad_scaler=torch.amp.GradScaler(device_type) if precision is torch.float16 else None,
        max_skipped_steps=solver.MAX_SKIPPED_STEPS,
    )


def check_training_step(cfg: CfgNode) -> None:
    """Refuse settings that no step can be made of, before anything expensive starts.

    Raises:
        ConfigError: a number out of its range, or an unknown precision.
    """
    solver = cfg.SOLVER
    if solver.ACCUMULATE_STEPS < 1:
        raise ConfigError(f"SOLVER.ACCUMULATE_STEPS {solver.ACCUMULATE_STEPS}: use 1 or more")
    if solver.MAX_SKIPPED_STEPS < 0:
        raise ConfigError(f"SOLVER.MAX_SKIPPED_STEPS {solver.MAX_SKIPPED_STEPS}: use 0 or more")
    if solver.AMP.DTYPE not in _PRECISIONS:
        choices = " or ".join(_PRECISIONS)
        raise ConfigError(f"SOLVER.AMP.DTYPE {solver.AMP.DTYPE!r}: use {choices}")


def _read(values: Tensor) -> tuple[list[float], bool]:
    """Numbers on the host, and whether those of all ranks are finite."""
    if comm.get_world_size() == 1:
        numbers = values.tolist()
        return numbers, all(map(math.isfinite, numbers))
    bad = (~values.isfinite()).any().float().reshape(1)
    torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
    *numbers, any_bad = torch.cat([values, bad]).tolist()
    return numbers, not any_bad


def _exchanged(model: nn.Module, now: bool) -> AbstractContextManager:
    """Whether the gradients of this batch are exchanged between processes."""
    if isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return nullcontext()


def norm_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Running means and variances by name, with their counters: what every forward pass moves."""
    return {
        f"{module}.{name}".removeprefix("."): buffer
        for module, layer in model.named_modules()
        if isinstance(layer, _NormBase)
        for name, buffer in layer.named_buffers(recurse=False)
    }

"""One optimizer step: precision, accumulation of gradients, and what is not finite."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.step.nonfinite import GRADIENTS, PREDICTIONS, SkippedSteps, Trouble
from d2_cityscapes.engine.step.optimizer import optimized_parameters

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
        self._skipped = SkippedSteps(max_skipped_steps)
        self._statistics = list(norm_buffers(model).values()) if max_skipped_steps else []

    def run_step(self) -> None:
        """
        Raises:
            NonFiniteError: more than `max_skipped_steps` in a row were to be left out.
        """
        assert self.model.training, "[TrainingStep] model was changed to eval mode!"
        statistics = [buffer.clone() for buffer in self._statistics]
        batches, data_time, complete = self._backward()
        finite = complete and self._gradients_finite()
        own = self._trouble(batches, gradients=complete and not finite)
        # One rank's trouble is everyone's: they take the same steps.
        found = [trouble for trouble in comm.all_gather(own) if trouble is not None]
        if found:
            for buffer, before in zip(self._statistics, statistics, strict=True):
                buffer.copy_(before)
            self._skipped.add(self.iter, found)
            get_event_storage().put_scalar(
                "skipped_steps", self._skipped.total, smoothing_hint=False
            )
        else:
            self._write_metrics(_means(batches), data_time)
            if finite:
                self._skipped.end_streak()
                self.optimizer.step()
        if self.grad_scaler is not None and complete:
            self.grad_scaler.update()

    def state_dict(self) -> dict:
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

    def _backward(self) -> tuple[list[_Batch], float, bool]:
        """The gradients of all batches.

        Returns:
            What is known of the batches, the seconds waited for them, and whether there are
            gradients: not where a forward pass failed, which ends the step on all ranks.
        """
        batches, data_time, complete = [], 0.0, True
        for number in range(1, self.accumulate_steps + 1):
            started = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - started
            if not complete:  # every step takes its batches
                continue
            with _exchanged(self.model, number == self.accumulate_steps):
                losses = self._forward(data)
                batches.append(_Batch(data, losses))
                complete = not self._fails_somewhere(losses)
                if complete:
                    if number == 1:
                        self.optimizer.zero_grad()
                    self._scaled(sum(losses.values()) / self.accumulate_steps).backward()
        return batches, data_time, complete

    def _forward(self, data: Any) -> dict[str, Tensor]:
        """Losses by name; none where the model finds that its predictions are not finite."""
        try:
            with self._precision():
                losses = self.model(data)
        except FloatingPointError:
            if not self.max_skipped_steps:
                self._skipped.add(self.iter, [Trouble((PREDICTIONS,), _files(data))])
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

    def _gradients_finite(self) -> bool:
        """Unscale the gradients, and look whether they are finite. True where nobody asks.

        Looking waits for the backward pass.
        """
        if self.grad_scaler is not None:
            # before the optimizer, whose clipping is of true gradients, fused or not
            self.grad_scaler.unscale_(self.optimizer)
        elif not self.max_skipped_steps:
            return True
        parameters = optimized_parameters(self.optimizer)
        sums = [p.grad.sum() for p in parameters if p.grad is not None]
        return bool(torch.stack(sums).isfinite().all())

    def _trouble(self, batches: list[_Batch], *, gradients: bool) -> Trouble | None:
        """What this rank found.

        Args:
            batches: those of the step.
            gradients: they are not finite.
        """
        bad = [batch for batch in batches if batch.not_finite()]
        names = dict.fromkeys(name for batch in bad for name in batch.not_finite())
        if not bad and gradients and self._no_overflow():
            bad, names = batches, {GRADIENTS: None}
        return Trouble(tuple(names), tuple(f for b in bad for f in b.files)) if bad else None

    def _no_overflow(self) -> bool:
        """Whether gradients that are not finite cannot be blamed on their scaling."""
        if not self.max_skipped_steps:
            return False
        return self.grad_scaler is None or self.grad_scaler.get_scale() <= 1


class _Batch:
    """The images of a batch, and its losses on their way to the host.

    On a GPU the losses are copied as soon as the forward pass has computed them, all at once, while
    the host goes on with the backward pass.
    """

    def __init__(self, data: Any, losses: dict[str, Tensor]) -> None:
        self.files = _files(data)
        self._names = list(losses)
        self._values = torch.zeros(0)
        self._copied: torch.cuda.Event | None = None
        if losses:
            values = torch.stack([loss.detach().reshape(()) for loss in losses.values()])
            self._values = values.to("cpu", non_blocking=True)
            if values.is_cuda:
                self._copied = torch.cuda.current_stream(values.device).record_event()

    def losses(self) -> dict[str, float]:
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))

    def not_finite(self) -> list[str]:
        """Names of the losses that are infinite or NaN; predictions, where there are no losses."""
        if not self._names:
            return [PREDICTIONS]
        return [name for name, value in self.losses().items() if not math.isfinite(value)]


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


def _means(batches: list[_Batch]) -> dict[str, Tensor]:
    """The losses of a step by name, each a float64 scalar on the host."""
    losses = [batch.losses() for batch in batches]
    names = dict.fromkeys(name for batch in losses for name in batch)
    sums = {name: math.fsum(batch.get(name, 0.0) for batch in losses) for name in names}
    return {
        name: torch.tensor(value / len(batches), dtype=torch.float64)
        for name, value in sums.items()
    }


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


def _files(data: Any) -> tuple[str, ...]:
    """The images of a batch by file, where it tells."""
    named = (image for image in data if isinstance(image, dict) and "file_name" in image)
    return tuple(str(image["file_name"]) for image in named)

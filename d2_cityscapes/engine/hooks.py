"""Training hooks."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence

from detectron2.engine import HookBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_cityscapes.engine.distributed import wrap_again
from d2_cityscapes.engine.step.optimizer import optimized_parameters
from d2_cityscapes.modeling.freezing.freeze import (
    FreezeError,
    FreezePhase,
    FreezePlan,
    freeze_report,
    own_parameters,
    plan_freezing,
    unwrap,
)
from d2_cityscapes.modeling.freezing.guard import await_schedule, keep_in_eval
from d2_cityscapes.modeling.freezing.state import checksums, frozen_tensors, norm_layers

__all__ = ["FreezeHook", "SettleHook"]

logger = logging.getLogger(__name__)


class FreezeHook(HookBase):
    """Guards what `freeze_modules` froze, and unfreezes what the schedule says when it says so.

    Before each step it puts the norm layers of frozen modules back into eval mode, because every
    evaluation ends with ``model.train()``. It compares checksums of all that is frozen with those
    from the beginning (after the weights were loaded), when training ends and when the schedule
    unfreezes it, and fails if anything moved.

    At an iteration of the schedule the parameters of the modules named there get gradients and
    their norm layers train, from the step of that iteration on. The optimizer holds them from the
    start (`later_parameters_on`), so neither it nor a learning-rate schedule changes. A model in
    DistributedDataParallel is wrapped again, because a wrapper keeps what trained when it was made.
    A resumed run begins in the phase of its iteration.

    A hook that runs the model in training mode between two steps, say for a validation loss, has to
    call `apply_norm_eval` first.
    """

    def __init__(self, patterns: Sequence[str], *, schedule: Sequence = (), norm_eval: bool = True):
        """
        Args:
            patterns: cfg.MODEL.FREEZE.MODULES.
            schedule: cfg.MODEL.FREEZE.SCHEDULE.
            norm_eval: cfg.MODEL.FREEZE.NORM_EVAL. False lets norm statistics move and leaves them
                out of the check.
        """
        self._patterns = list(patterns)
        self._schedule = list(schedule)
        self._norm_eval = norm_eval
        self._plan = FreezePlan((), ())
        self._phase = FreezePhase(0, ())
        self._norms: list[nn.Module] = []
        self._before: dict[str, str] = {}

    def before_train(self) -> None:
        model = unwrap(self.trainer.model)
        self._plan = plan_freezing(model, self._patterns, self._schedule)
        now = self._plan.at(self.trainer.iter)
        trains = [
            name
            for name in now.frozen
            if any(parameter.requires_grad for parameter in own_parameters(model, [name]))
        ]
        if trains:
            raise FreezeError(
                f"{self._modules_around(trains)} is not frozen: call freeze_modules before the "
                "optimizer"
            )
        self._check_optimizer()
        self._phase = self._plan.at(0)
        self._norms = self._norms_of(self._phase)
        await_schedule(model, False)
        if now is not self._phase:
            self._enter(now)
        self._before = self._checksums(now.frozen)
        self.apply_norm_eval()

    def before_step(self) -> None:
        now = self._plan.at(self.trainer.iter)
        if now is not self._phase:
            self._check_unmoved([name for name in self._phase.frozen if name not in now.frozen])
            self._enter(now)
        self.apply_norm_eval()

    def after_train(self) -> None:
        # Also called after an exception, which must not be hidden behind ours.
        if self.trainer.iter >= self.trainer.max_iter:
            self._check_unmoved(self._phase.frozen)

    def apply_norm_eval(self) -> None:
        """Put the norm layers of frozen modules into eval mode, unless `norm_eval` is off."""
        for layer in self._norms:
            layer.eval()

    def _enter(self, phase: FreezePhase) -> None:
        for layer in self._norms:
            layer.train()  # those that stay frozen go back by apply_norm_eval
        self._phase, self._norms = phase, self._norms_of(phase)
        keep_in_eval(self.trainer.model, self._norms)
        frozen = {id(p) for p in own_parameters(self.trainer.model, phase.frozen)}
        for parameter in optimized_parameters(self.trainer.optimizer):
            parameter.requires_grad_(id(parameter) not in frozen)
        if isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model = wrap_again(self.trainer.model)
        report = freeze_report(self.trainer.model, phase.frozen)
        logger.info(
            "Iteration %d: unfrozen by MODEL.FREEZE.SCHEDULE. Still frozen: %s\n%s",
            self.trainer.iter,
            ", ".join(report.frozen_modules) or "nothing",
            report.table(),
        )

    def _check_optimizer(self) -> None:
        optimized = {id(parameter) for parameter in optimized_parameters(self.trainer.optimizer)}
        for before, after in itertools.pairwise(self._plan.phases):
            released = {id(p) for p in own_parameters(self.trainer.model, before.frozen)}
            released -= {id(p) for p in own_parameters(self.trainer.model, after.frozen)}
            if not released & optimized:
                raise FreezeError(
                    f"MODEL.FREEZE.SCHEDULE: the optimizer holds nothing of what iteration "
                    f"{after.start} unfreezes: build it inside later_parameters_on(model)"
                )

    def _check_unmoved(self, layers: Sequence[str]) -> None:
        """Compare with the beginning of the training."""
        after = self._checksums(layers)
        moved = [name for name, checksum in after.items() if self._before[name] != checksum]
        if moved:
            raise FreezeError(
                f"frozen modules changed during training: {self._modules_around(moved)} "
                f"({len(moved)} tensors, first {moved[0]})"
            )

    def _modules_around(self, names: Sequence[str]) -> str:
        """The outermost frozen modules that these layers or tensors belong to."""
        modules = self._plan.modules
        return ", ".join(m for m in modules if any(f"{n}.".startswith(f"{m}.") for n in names))

    def _norms_of(self, phase: FreezePhase) -> list[nn.Module]:
        return norm_layers(self.trainer.model, phase.frozen) if self._norm_eval else []

    def _checksums(self, layers: Sequence[str]) -> dict[str, str]:
        model = self.trainer.model
        return checksums(frozen_tensors(model, layers, norm_statistics=self._norm_eval))


class SettleHook(HookBase):
    """Settles the steps so far (`TrainingStep.settle`) before anything is made of them.

    It comes first of all hooks, on all ranks.

    Args:
        periods: iterations between two checkpoints, evaluations or lines of the log; 0 for none.
    """

    def __init__(self, periods: Iterable[int]) -> None:
        self._periods = [period for period in periods if period > 0]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or any(done % period == 0 for period in self._periods):
            self.trainer._trainer.settle()

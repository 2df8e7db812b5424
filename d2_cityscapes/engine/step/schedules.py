"""Learning-rate schedules: Detectron2's own, cosine, polynomial, constant, and on plateaus."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.errors import building

__all__ = ["PlateauHook", "PlateauLR", "build_lr_scheduler", "check_schedule", "resume_rates"]

logger = logging.getLogger(__name__)


class PlateauLR(LRMultiplier):
    """Warm-up, then constant, and lower by a factor whenever validations stop improving.

    PyTorch's ReduceLROnPlateau decides, validations in place of its epochs, those during the
    warm-up included. The learning rate of each group is its own times warm-up times one factor for
    all. It takes part in checkpoints as Detectron2's schedulers do; settings come from the config.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        *,
        patience: int,
        factor: float,
        threshold: float,
        min_factor: float = 0.0,
    ) -> None:
        """
        Args:
            optimizer, multiplier, max_iter: see LRMultiplier; without the plateaus.
            patience: so many validations in a row without progress change nothing.
            factor: of one reduction, below 1.
            threshold: progress is a loss below (1 - threshold) times the lowest.
            min_factor: where all reductions together end.
        """
        # ReduceLROnPlateau lowers the learning rate of an optimizer: here it is the factor.
        self._holder = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._plateau = ReduceLROnPlateau(
            self._holder,
            patience=patience,
            factor=factor,
            threshold=threshold,
            min_lr=min_factor,
            eps=0.0,
        )
        super().__init__(optimizer, multiplier, max_iter)

    @property
    def factor(self) -> float:
        """All reductions so far, multiplied."""
        return self._holder.param_groups[0]["lr"]

    def get_lr(self) -> list[float]:
        return [lr * self.factor for lr in super().get_lr()]

    def step_validation(self, loss: float) -> None:
        """Take a validation loss into account, the same on all ranks, from the next step on."""
        before = self.factor
        self._plateau.step(loss)
        if self.factor == before:
            return
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        logger.info(
            "learning rate times %.3g from here on: no progress since validation loss %.5g",
            self.factor,
            self._plateau.best,
        )

    def state_dict(self) -> dict:
        """With what was learned from the validations so far."""
        plateau = {
            "factor": self.factor,
            "best": self._plateau.best,
            "num_bad_epochs": self._plateau.num_bad_epochs,
        }
        return super().state_dict() | {"plateau": plateau}

    def load_state_dict(self, state_dict: dict) -> None:
        state = dict(state_dict)
        plateau = state.pop("plateau", None)
        super().load_state_dict(state)
        if plateau is None:  # of a run with another schedule
            return
        self._holder.param_groups[0]["lr"] = plateau["factor"]
        self._plateau.best = plateau["best"]
        self._plateau.num_bad_epochs = plateau["num_bad_epochs"]


class PlateauHook(HookBase):
    """Hands the total validation loss to a `PlateauLR`; after a `ValidationLossHook`.

    Args:
        period: that of the validations. The one that follows the last iteration counts only where
            it belongs to these, so that a run that is prolonged goes on as if it had not ended.
    """

    def __init__(self, period: int) -> None:
        self._period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0:
            loss = self.trainer.storage.history("val/total_loss").latest()
            self.trainer.scheduler.step_validation(loss)


@building("the schedule")
def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Build the scheduler that SOLVER.LR_SCHEDULER_NAME names, stepped once an iteration.

    All of them multiply the learning rate of every parameter group by the same factor, and begin
    with Detectron2's warm-up. BASE_LR_END and PLATEAU.MIN_LR are those of a group that starts at
    BASE_LR.

    Raises:
        ConfigError: an unknown name, or settings that it cannot use.
    """
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    _check_range(cfg, "MAX_ITER", 1)
    try:
        return _BUILDERS.get(name, build_detectron2)(cfg, optimizer)
    except ValueError as error:
        names = ("WarmupMultiStepLR", *_BUILDERS)
        hint = "" if name in names else f"; use one of {', '.join(names)}"
        raise ConfigError(f"SOLVER.LR_SCHEDULER_NAME {name!r}: {error}{hint}") from error


def check_schedule(cfg: CfgNode) -> None:
    """Refuse what `build_lr_scheduler` will refuse, before anything expensive starts.

    Raises:
        ConfigError: an unknown name, or settings that it cannot use.
    """
    build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], lr=1.0))


def resume_rates(scheduler: LRMultiplier, base_lrs: list[float | Tensor]) -> None:
    """Go on at the rates of the config, once scheduler and optimizer have loaded their states.

    They are those of the state to the bit, unless the config has changed.

    Args:
        base_lrs: of the scheduler before it loaded its state, which has those of that training.
    """
    scheduler.base_lrs = base_lrs
    scheduler._last_lr = scheduler.get_lr()
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate


def _cosine(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    _check_range(cfg, "BASE_LR_END", 0, cfg.SOLVER.BASE_LR)
    _check_range(cfg, "COSINE_ITERS", 0)
    horizon = cfg.SOLVER.COSINE_ITERS or cfg.SOLVER.MAX_ITER
    end = _relative(cfg, cfg.SOLVER.BASE_LR_END)
    cosine = _Held(_warmed_up(cfg, CosineParamScheduler(1, end), horizon))
    return LRMultiplier(optimizer, cosine, horizon)


def _constant(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    return LRMultiplier(optimizer, _warmed_up_constant(cfg), cfg.SOLVER.MAX_ITER)


def _plateau(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> PlateauLR:
    if cfg.TEST.VAL_LOSS_PERIOD < 1:
        raise ConfigError(
            "SOLVER.LR_SCHEDULER_NAME 'ReduceLROnPlateau' follows the validation loss: set "
            "TEST.VAL_LOSS_PERIOD to the iterations between two validations"
        )
    _check_range(cfg, "PLATEAU.PATIENCE", 0)
    _check_range(cfg, "PLATEAU.FACTOR", 0)
    _check_range(cfg, "PLATEAU.THRESHOLD", 0, 1)
    _check_range(cfg, "PLATEAU.MIN_LR", 0, cfg.SOLVER.BASE_LR)
    plateau = cfg.SOLVER.PLATEAU
    return PlateauLR(
        optimizer,
        _warmed_up_constant(cfg),
        cfg.SOLVER.MAX_ITER,
        patience=plateau.PATIENCE,
        factor=plateau.FACTOR,
        threshold=plateau.THRESHOLD,
        min_factor=_relative(cfg, plateau.MIN_LR),
    )


def _poly(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    _check_range(cfg, "POLY_LR_POWER", 0)
    _check_range(cfg, "POLY_LR_CONSTANT_ENDING", 0, 1)
    return LRMultiplier(optimizer, _Poly(cfg.SOLVER), cfg.SOLVER.MAX_ITER)


_BUILDERS: dict[str, Callable[[CfgNode, torch.optim.Optimizer], LRMultiplier]] = {
    "WarmupCosineLR": _cosine,
    "WarmupPolyLR": _poly,
    "WarmupConstantLR": _constant,
    "ReduceLROnPlateau": _plateau,
}


class _Poly(ParamScheduler):
    """(1 - iteration / MAX_ITER) ** power, as Detectron2's DeepLab project has it.

    The warm-up is a factor of it, where those of other schedules lead to it. Behind the warm-up it
    falls no lower than POLY_LR_CONSTANT_ENDING.
    """

    def __init__(self, solver: CfgNode) -> None:
        if solver.WARMUP_METHOD not in ("linear", "constant"):
            raise ValueError(f"Unknown warmup method: {solver.WARMUP_METHOD}")
        self._length, self._power = solver.MAX_ITER, solver.POLY_LR_POWER
        self._end = solver.POLY_LR_CONSTANT_ENDING
        self._warmup, self._start = solver.WARMUP_ITERS, solver.WARMUP_FACTOR
        self._is_linear = solver.WARMUP_METHOD == "linear"

    def __call__(self, where: float) -> float:
        step = round(where * self._length)
        left = max(1.0 - step / self._length, 0.0) ** self._power
        if step >= self._warmup:
            return max(left, self._end)
        part = step / self._warmup if self._is_linear else 0.0
        return (self._start * (1 - part) + part) * left


class _Held(ParamScheduler):
    """A schedule that keeps its last value when training goes on behind its end."""

    def __init__(self, schedule: ParamScheduler) -> None:
        self._schedule = schedule

    def __call__(self, where: float) -> float:
        return self._schedule(min(where, 1.0))


def _warmed_up_constant(cfg: CfgNode) -> ParamScheduler:
    length = cfg.SOLVER.MAX_ITER
    # fvcore's ConstantParamScheduler refuses the step that follows the last iteration.
    constant = MultiStepParamScheduler([1.0], num_updates=length, milestones=[])
    return _warmed_up(cfg, constant, length)


def _warmed_up(cfg: CfgNode, schedule: ParamScheduler, length: int) -> WarmupParamScheduler:
    """``schedule``, over ``length`` iterations, behind the warm-up of the config."""
    solver = cfg.SOLVER
    return WarmupParamScheduler(
        schedule,
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / length, 1.0),
        solver.WARMUP_METHOD,
        # Detectron2 0.6 has neither the key nor the argument.
        *([solver.RESCALE_INTERVAL] if "RESCALE_INTERVAL" in solver else []),
    )


def _relative(cfg: CfgNode, rate: float) -> float:
    """``rate`` as a part of BASE_LR, which may be 0 where ``rate`` is."""
    return rate / cfg.SOLVER.BASE_LR if rate else 0.0


def _check_range(cfg: CfgNode, key: str, low: float, high: float | None = None) -> None:
    """Refuse a value of SOLVER that is not from ``low`` to ``high``."""
    value = cfg.SOLVER
    for part in key.split("."):
        value = value[part]
    if value < low or (high is not None and value > high):
        limits = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
        raise ConfigError(f"SOLVER.{key} {value}: use a number {limits}")

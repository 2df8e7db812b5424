"""The hooks of a training in their order, which decides what sees what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from detectron2.engine import HookBase
from detectron2.engine.hooks import (
    CallbackHook,
    EvalHook,
    IterationTimer,
    PeriodicCheckpointer,
)
from detectron2.utils import comm

from d2_cityscapes.engine.checkpoints.averaging import AveragingHook, final_weights
from d2_cityscapes.engine.computing import MemoryAdviceHook
from d2_cityscapes.engine.hooks import FreezeHook, SettleHook
from d2_cityscapes.engine.precise_bn import repeatable
from d2_cityscapes.engine.progress import ProgressHook
from d2_cityscapes.engine.run_results import both
from d2_cityscapes.engine.setup import images_per_step
from d2_cityscapes.engine.step.schedules import PlateauHook, PlateauLR
from d2_cityscapes.engine.validation_loss import ValidationLossHook, build_validation_loader
from d2_cityscapes.evaluation.results import add_weights
from d2_cityscapes.run_folder import RESULTS

if TYPE_CHECKING:
    from d2_cityscapes.engine.trainer import Trainer

__all__ = ["hooks_in_order"]

_Results = TypeVar("_Results")
_LOG_PERIOD = 20  # iterations between two lines of Detectron2's writers


def hooks_in_order(trainer: Trainer, hooks: list[HookBase]) -> list[HookBase]:
    """Those of this package among those of Detectron2's trainer.

    Args:
        trainer: with its config and its schedule.
        hooks: what ``DefaultTrainer.build_hooks`` gives.
    """
    cfg = trainer.cfg
    hooks = [repeatable(hook) for hook in hooks]
    if cfg.TEST.AUG.ENABLED and cfg.DATASETS.TEST:
        place = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        hooks.insert(place + 1, EvalHook(0, partial(_test_augmented, trainer)))
    for hook in hooks:
        if isinstance(hook, EvalHook):
            hook._func = _unless_failed(trainer, hook._func)
    freeze = cfg.MODEL.FREEZE
    if freeze.MODULES:
        guard = FreezeHook(freeze.MODULES, schedule=freeze.SCHEDULE, norm_eval=freeze.NORM_EVAL)
        hooks.insert(0, guard)
    if cfg.SOLVER.EMA_DECAY > 0:
        average = AveragingHook(cfg.SOLVER.EMA_DECAY)
        hooks.insert(0, average)
        for hook in hooks:
            if isinstance(hook, EvalHook):
                hook._func = average.averaged(hook._func)
    period = cfg.TEST.VAL_LOSS_PERIOD
    if period > 0:
        # before the checkpoints, which hold what the schedule learns from it, and the writers
        later = PeriodicCheckpointer | EvalHook
        place = next(i for i, hook in enumerate(hooks) if isinstance(hook, later))
        hooks.insert(place, ValidationLossHook(period, build_validation_loader(cfg)))
        if isinstance(trainer.scheduler, PlateauLR):
            hooks.insert(place + 1, PlateauHook(period))
    if comm.is_main_process():
        place = next(i for i, hook in enumerate(hooks) if isinstance(hook, IterationTimer))
        hooks.insert(place + 1, ProgressHook(images_per_step(cfg)))
        hooks.append(MemoryAdviceHook(images_per_step(cfg)))
        hooks.append(CallbackHook(after_train=_sign_results))
    # before checkpoints, evaluations and the writers, and alike on all ranks
    ends = (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD, period, _LOG_PERIOD)
    hooks.insert(0, SettleHook(ends))
    return hooks


def _test_augmented(trainer: Trainer) -> dict:
    """At the end, behind the evaluation without TEST.AUG, whose results get those of this one."""
    found = trainer.test_with_TTA(trainer.cfg, trainer.model)
    trainer._last_eval_results = both(trainer._last_eval_results, found)
    return found


def _unless_failed(
    trainer: Trainer, evaluate: Callable[[], _Results]
) -> Callable[[], _Results | None]:
    """For `EvalHook`, which takes a training whose last step failed for one at its end.

    A checkpoint that cannot be written fails it: there would be results without weights.
    """

    def run() -> _Results | None:
        failed = trainer.iter + 1 == trainer.max_iter  # only then is it called in the last step
        return None if failed else evaluate()

    return run


def _sign_results(trainer: Trainer) -> None:
    """Enter the checksum of the final weights, just evaluated, into results.json."""
    results = Path(trainer.cfg.OUTPUT_DIR) / RESULTS
    if trainer.iter >= trainer.max_iter:  # not after an error in the last step
        images = trainer.data_loader.images
        add_weights(results, final_weights(trainer.cfg), images and asdict(images))

"""The process of a trial: train as its folder says, report values, leave the outcome."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from d2_cityscapes.engine.computing import computing
from d2_cityscapes.engine.key_effects import check_key_effects
from d2_cityscapes.engine.trainer import Trainer, build_run, setup
from d2_cityscapes.engine.validation_loss import build_validation_loader, validation_losses
from d2_cityscapes.evaluation.results import read_results
from d2_cityscapes.modeling.freezing.freeze import unwrap
from d2_cityscapes.run_folder import CONFIG, RESULTS
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.preflight.applied import check_applied
from d2_cityscapes.search.space.plan import VAL_LOSS, Objective
from d2_cityscapes.search.trials.folders import TrialJob, read_job
from d2_cityscapes.search.trials.process import Pruned, Report, serve

__all__ = ["ReportHook", "run_trial"]


class ReportHook(HookBase):
    """Reports the objective after each evaluation, and ends the trial where that is the answer.

    It comes after the hooks that evaluate.
    """

    def __init__(self, period: int, read: Callable[[], float], report: Report) -> None:
        """
        Args:
            period: iterations between two evaluations; the last one is at the end of training.
            read: gives the value of the last one.
            report: called with 1, 2, ... and the value; True ends the training with `Pruned`.
        """
        self._period = period
        self._read = read
        self._report = report

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if (
            done % self._period == 0
            and done != self.trainer.max_iter
            and self._report(done // self._period, self._read())
        ):
            raise Pruned

    def after_train(self) -> None:
        # A training that fails comes here too.
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._report(-(-self.trainer.max_iter // self._period), self._read())


def run_trial(folder: Path, report: Report) -> tuple[float, Mapping[str, float]]:
    """Train the trial of a folder, from its last checkpoint where there is one.

    Returns:
        The value of the objective, and all means of results.json by task and metric.

    Raises:
        D2CityscapesError: a value that the model does not hold, a number that is not there.
        Pruned: ``report`` wanted so.
    """
    job = read_job(folder)
    config = str(folder / CONFIG)
    cfg = setup(argparse.Namespace(config_file=config, opts=[], eval_only=False))
    with computing(cfg):
        last = _train(cfg, job, report)
    rows, _ = read_results(folder / RESULTS)
    means = {f"{row.task} {row.metric}": row.value for row in rows if "-" not in row.metric}
    return last, {name: value for name, value in means.items() if value is not None}


def _train(cfg: CfgNode, job: TrialJob, report: Report) -> float:
    """The last value of the objective."""
    trainer, reads = build_run(cfg)
    # What acts with other values only is no mistake; what never does was refused by `check_reach`.
    check_key_effects(trainer.cfg, reads, allowed=True)
    check_applied(cfg, trainer.model, trainer.optimizer, job.values)
    last: list[float] = []

    def read() -> float:
        last.append(_read_value(trainer, cfg, job.objective))
        return last[-1]

    trainer.register_hooks([ReportHook(job.period, read, report)])
    trainer.resume_or_load(resume=True)
    trainer.train()
    return last[-1]


def _read_value(trainer: Trainer, cfg: CfgNode, objective: Objective) -> float:
    if objective.task == VAL_LOSS:
        try:
            history = trainer.storage.history(f"val/{objective.metric}")
        except KeyError:
            return _validation_loss(trainer, cfg, objective)
        return history.latest()
    rows, _ = read_results(Path(cfg.OUTPUT_DIR) / RESULTS)
    wanted = (objective.dataset, objective.task, objective.metric)
    found = [row.value for row in rows if (row.dataset, row.task, row.metric) == wanted]
    if not found:
        metrics = sorted({row.metric for row in rows if row.task == objective.task})
        raise SearchError(
            f"objective: no {objective} on {objective.dataset} in results.json; {objective.task} "
            f"has {', '.join(metrics) or 'nothing'}"
        )
    if found[0] is None:
        raise SearchError(f"objective: {objective} is null: {objective.dataset} has no such class")
    return found[0]


def _validation_loss(trainer: Trainer, cfg: CfgNode, objective: Objective) -> float:
    """For a trial that was killed behind its last step, and for a name that is no loss."""
    losses = validation_losses(unwrap(trainer.model), build_validation_loader(cfg))
    losses["total_loss"] = sum(losses.values())
    if objective.metric not in losses:
        raise SearchError(f"objective: no val_loss {objective.metric}; it has {', '.join(losses)}")
    return losses[objective.metric]


if __name__ == "__main__":
    serve(run_trial)

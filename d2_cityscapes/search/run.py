"""The search itself: workers take trials, run them, and record how they ended."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from optuna.trial import FrozenTrial, Trial

from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.space.plan import SearchPlan
from d2_cityscapes.search.study import Search
from d2_cityscapes.search.trials.folders import TrialFolders, TrialJob, remove_checkpoints
from d2_cityscapes.search.trials.process import Outcome, TrialProcess
from d2_cityscapes.search.trials.storage import SEARCH
from d2_cityscapes.search.trials.trial_queue import CONTINUES, AlreadyFinished, TrialQueue
from d2_cityscapes.search.trials.workers import Process, Workers

__all__ = ["run_search", "start_trial", "trial_job"]

logger = logging.getLogger(__name__)

_IN_A_ROW = 3  # failures after which the search gives up
_POLL = 2.0  # seconds between two looks for a free place

# Starts the process that trains a trial: (folder, environment) -> process.
start_trial = partial(TrialProcess, [sys.executable, "-m", "d2_cityscapes.search.trials.trial"])


@dataclass(frozen=True)
class _Search:
    """What the workers of one command share."""

    search: Search
    plan: SearchPlan
    folders: TrialFolders
    queue: TrialQueue
    workers: Workers
    total: int
    keep_checkpoints: bool
    say: Callable[[str], None]
    failures: list[str] = field(default_factory=list)  # in a row

    def work(self, environment: Mapping[str, str]) -> None:
        """One worker: trials until there are enough."""
        while not self.workers.stopping.is_set() and self.queue.finished() < self.total:
            trial = self.queue.next()
            if trial is None:
                self.workers.stopping.wait(_POLL)
                continue
            outcome = self._run(trial, environment)
            if outcome is None:
                self.queue.release(trial)
                return
            self.queue.finish(trial, outcome)
            self._tell(trial, outcome)

    def _run(self, trial: Trial, environment: Mapping[str, str]) -> Outcome | None:
        folder = self.folders.path(trial.number)
        job, cfg = trial_job(self.search, self.plan, trial, folder)
        continues = tuple(trial.user_attrs.get(CONTINUES, ()))
        self.folders.prepare(job, cfg, continues=continues)
        begins = f"goes on with trial {continues[-1]}" if continues else "begins"
        device = environment.get("CUDA_VISIBLE_DEVICES")
        gpu = f" on GPU {device}" if device else ""
        shown = ", ".join(f"{name} {_short(value)}" for name, value in job.values.items())
        self.say(f"trial {trial.number} {begins}{gpu}: {shown}")
        reported = set(self.queue.frozen(trial.number).intermediate_values)

        def report(step: int, value: float) -> bool:
            try:
                if step not in reported:
                    trial.report(value, step)
                prune = bool(trial.should_prune())  # the median pruner gives numpy's
            except AlreadyFinished:  # taken over
                return True
            self.say(f"trial {trial.number} report {step}: {self.plan.objective} {value:.4g}")
            return prune

        with contextlib.ExitStack() as stack:
            return self.workers.run_process(
                folder,
                environment,
                report,
                started=lambda process: stack.enter_context(_beating(self.queue, trial, process)),
            )

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        name = f"trial {trial.number}"
        if outcome.state in ("complete", "pruned"):
            self.failures.clear()
        if outcome.state == "refused":
            raise SearchError(f"{name}: {outcome.reason}")
        if outcome.state == "failed":
            self.failures.append(outcome.reason)
            self.say(f"{name} failed: {outcome.reason}")
            if len(self.failures) >= _IN_A_ROW:
                raise SearchError(
                    f"{len(self.failures)} trials in a row failed, the last one with: "
                    f"{outcome.reason}; see {self.folders.path(trial.number) / 'output.txt'}"
                )
            return
        if outcome.state == "interrupted":
            self.say(f"{name} interrupted: {outcome.reason}")
            return
        if not self.keep_checkpoints:
            remove_checkpoints(self.folders.path(trial.number))
        value = "" if outcome.value is None else f": {self.plan.objective} {outcome.value:.4g}"
        self.say(
            f"{name} {outcome.state}{value}; {self.queue.finished()} of {self.total}{self._best()}"
        )

    def _best(self) -> str:
        with contextlib.suppress(ValueError):  # none is complete
            best = self.search.study.best_trial
            return f", best {best.value:.4g} of trial {best.number}"
        return ""


def run_search(
    search: Search,
    plan: SearchPlan,
    *,
    total: int,
    output_dir: str | Path,
    workers: int = 1,
    start: Callable[[Path, Mapping[str, str]], Process] = start_trial,
    heartbeat: float = 30.0,
    keep_checkpoints: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Run trials until the study has ``total`` complete or pruned ones.

    Other machines may work on the same study meanwhile. Whatever is killed, this command continues
    where all of it was: trials that are running elsewhere are waited for, those of workers that are
    gone continued from their checkpoints.

    Args:
        search, plan: from `open_search` and `read_plan`.
        total: see above; failed trials do not count.
        output_dir: receives a folder for each trial.
        workers: trials at once on this machine, in turn on its GPUs.
        start: starts the process of a trial.
        heartbeat: seconds between two signs of life of a worker.
        keep_checkpoints: of finished trials.
        say: gets a line for everything that happens.

    Raises:
        SearchError: three trials in a row failed; or the folder belongs to another study.
    """
    study = search.study
    folders = TrialFolders(Path(output_dir), study.user_attrs[SEARCH]["id"])
    queue = TrialQueue(
        study,
        search.space,
        total=total,
        find_outcome=folders.find_outcome,
        heartbeat=heartbeat,
    )
    pool = Workers(start, count=workers)
    shared = _Search(
        search, plan, folders, queue, pool,
        total=total, keep_checkpoints=keep_checkpoints, say=say,
    )  # fmt: skip
    pool.run(shared.work)


def trial_job(
    search: Search,
    plan: SearchPlan,
    trial: Trial | FrozenTrial,
    folder: Path,
    *,
    seed: int | None = None,
) -> tuple[TrialJob, CfgNode]:
    """What the process of a trial does.

    Args:
        search, plan: of the trial.
        trial: gives the values.
        folder: of the process.
        seed: as in `SearchPlan.config`.
    """
    values = search.space.values(trial.params)
    cfg = plan.config(values, output_dir=folder, seed=seed)
    job = TrialJob(
        study=search.study.user_attrs[SEARCH]["id"],
        number=trial.number,
        values=values,
        objective=plan.objective,
        period=plan.report_period(cfg),
    )
    return job, cfg


@contextlib.contextmanager
def _beating(queue: TrialQueue, trial: Trial, process: Process) -> Iterator[None]:
    """Signs of life while the block runs; the process ends if another worker took its trial."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(queue.heartbeat):
            try:
                if not queue.beat(trial):
                    process.kill()
                    return
            except Exception as error:  # the database may be back at the next one
                logger.warning("trial %d: no sign of life: %s", trial.number, error)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""The trials of a study, shared by workers on any number of machines; any may be killed."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from d2_cityscapes.search.space.space import Space
from d2_cityscapes.search.trials.process import Outcome

__all__ = [
    "CONTINUES",
    "INTERRUPTED",
    "REASON",
    "AlreadyFinished",
    "TrialQueue",
    "count_finished",
]

logger = logging.getLogger(__name__)

# What Optuna raises where a trial is finished already; newer versions have a subclass for it.
AlreadyFinished = RuntimeError

# Trial attributes.
CONTINUES = "continues"  # numbers of the interrupted trials that this one takes further
REASON = "reason"  # why it failed, one line
INTERRUPTED = "interrupted: "  # how that begins where another trial takes its place
RESULTS = "results"  # other numbers of the trial
_WORKER = "worker"  # who runs it: machine, pid, run
_BEAT = "heartbeat"  # when that one was last alive, seconds since 1970; 0: it let go

_MISSED_BEATS = 5  # until a worker that cannot be asked counts as gone
_MAX_KILLS = 3  # processes of one trial, before it counts as failed


class TrialQueue:
    """Hands out trials until a study has as many finished ones as it should have.

    Complete and pruned trials count. A trial whose worker is gone is told if it left an outcome;
    otherwise it is recorded as failed, and another one continues it with its values and reports.
    Threads may share a queue; every machine has its own.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        *,
        total: int,
        find_outcome: Callable[[int], Outcome | None],
        heartbeat: float = 30.0,
    ) -> None:
        """
        Args:
            study, space: of the search.
            total: complete and pruned trials that there should be.
            find_outcome: trial number -> what it left on this machine, if anything.
            heartbeat: seconds between two signs of life.
        """
        self._study = study
        self._space = space
        self._total = total
        self._find_outcome = find_outcome
        self.heartbeat = heartbeat
        self._lock = threading.Lock()
        self._worker = {"machine": _machine(), "pid": os.getpid(), "run": uuid.uuid4().hex}

    def finished(self) -> int:
        """See `count_finished`."""
        return count_finished(self._study)

    def next(self) -> Trial | None:
        """A trial to run; None while all places are taken by trials that run, or when all is done.

        Its params are set and feasible.
        """
        with self._lock:
            self._take_over()
            waiting = len(self._trials(TrialState.WAITING))
            if not waiting and len(self._live()) >= self._total:
                return None
            trial = self._study.ask(self._space.distributions)
            self.beat(trial)  # first: a worker without a sign of life would be taken for gone
            trial.set_user_attr(_WORKER, self._worker)
            # Of workers that took the last place at once, the lower numbers keep it.
            if trial.number in [t.number for t in self._live()[self._total :]]:
                self._fail(trial.number, f"not needed: there are {self._total} trials already")
                return None
            return trial

    def beat(self, trial: Trial, *, at: float | None = None) -> bool:
        """Give a sign of life; False where another worker has taken the trial over."""
        try:
            trial.set_user_attr(_BEAT, time.time() if at is None else at)
        except AlreadyFinished:
            return False
        return True

    def release(self, trial: Trial) -> None:
        """Let go of a trial that is not finished, for whoever comes next."""
        self.beat(trial, at=0.0)

    def finish(self, trial: Trial, outcome: Outcome) -> None:
        """Record how a trial ended. One that was killed is queued again, up to three times."""
        frozen = self.frozen(trial.number)
        if frozen.state.is_finished():
            logger.warning("trial %d was taken over by another worker", trial.number)
        elif outcome.state == "interrupted":
            kills = frozen.user_attrs.get("kills", 0) + 1
            if kills < _MAX_KILLS:
                self._continue(frozen, outcome.reason, kills=kills)
            else:
                self._fail(trial.number, f"{outcome.reason}, {kills} times; out of memory?")
        else:
            self._tell(trial.number, outcome)

    def frozen(self, number: int) -> FrozenTrial:
        """A trial as the study has it now."""
        return next(t for t in self._trials() if t.number == number)

    def _tell(self, number: int, outcome: Outcome) -> None:
        if outcome.state in ("failed", "refused"):
            self._fail(number, outcome.reason)
            return
        state = TrialState.COMPLETE if outcome.state == "complete" else TrialState.PRUNED
        with suppress(AlreadyFinished):
            if outcome.results:
                self._set(number, RESULTS, dict(outcome.results))
            self._study.tell(number, outcome.value, state=state, skip_if_finished=True)

    def _fail(self, number: int, reason: str) -> bool:
        """Record a failure; False where the trial was finished already."""
        with suppress(AlreadyFinished, ValueError):
            self._set(number, REASON, reason)
            self._study.tell(number, state=TrialState.FAIL)
            return True
        return False

    def _take_over(self) -> None:
        """Settle the running trials of workers that are gone."""
        for trial in self._trials(TrialState.RUNNING):
            if self._is_alive(trial):
                continue
            outcome = self._find_outcome(trial.number)
            if outcome is not None and outcome.state != "interrupted":
                self._tell(trial.number, outcome)
            else:
                self._continue(trial, "its worker is gone", kills=trial.user_attrs.get("kills", 0))

    def _continue(self, trial: FrozenTrial, reason: str, *, kills: int) -> None:
        """Fail a trial and queue another one with its values and reports."""
        complete = trial.params.keys() == self._space.distributions.keys()
        reason = INTERRUPTED + reason + ("; continued by another trial" if complete else "")
        if self._fail(trial.number, reason) and complete:
            before = trial.user_attrs.get(CONTINUES, [])
            self._study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    intermediate_values=trial.intermediate_values,
                    user_attrs={CONTINUES: [*before, trial.number], "kills": kills},
                )
            )

    def _is_alive(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(_WORKER)
        if worker is None:  # it is just beginning, or was killed there
            started = trial.datetime_start or datetime.now()
            age = (datetime.now() - started).total_seconds()
            return age < self.heartbeat * _MISSED_BEATS
        if worker == self._worker:
            return trial.user_attrs.get(_BEAT) != 0
        if worker["machine"] == self._worker["machine"] and (
            worker["pid"] == self._worker["pid"]  # this process has taken its number
            or not _process_exists(worker["pid"])
        ):
            return False
        return time.time() - trial.user_attrs.get(_BEAT, 0) < self.heartbeat * _MISSED_BEATS

    def _live(self) -> list[FrozenTrial]:
        """Trials that hold a place, by number."""
        states = TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING
        return sorted(self._trials(*states), key=lambda trial: trial.number)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _set(self, number: int, key: str, value: Any) -> None:
        # Optuna has no public way to do this for a trial of another process.
        self._study._storage.set_trial_user_attr(self.frozen(number)._trial_id, key, value)


def count_finished(study: optuna.Study) -> int:
    """Complete and pruned trials of a study: those that count."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return len(study.get_trials(deepcopy=False, states=states))


def _machine() -> str:
    """A name that no two machines, boots or containers share, as far as they tell."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

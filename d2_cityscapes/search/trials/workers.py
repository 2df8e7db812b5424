"""Threads that each run one trial process at a time, and the processes' shares of the machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

import torch

from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.trials.process import Outcome, Report

__all__ = ["Process", "Workers", "worker_environments"]


class Process(Protocol):
    """What `TrialProcess` is, and tests imitate."""

    def wait(self, report: Report) -> Outcome: ...

    def kill(self) -> None: ...


class Workers:
    """Threads that run processes; all of them end together, with nothing left running.

    Attributes:
        stopping: set when no new work shall begin.
    """

    def __init__(self, start: Callable[[Path, Mapping[str, str]], Process], *, count: int) -> None:
        """
        Args:
            start: starts a process on a folder in an environment.
            count: number of threads.

        Raises:
            SearchError: a number below 1.
        """
        if count < 1:
            raise SearchError(f"--workers {count}: use 1 or more")
        self._start = start
        self._environments = worker_environments(count)
        self._lock = threading.Lock()
        self._processes: set[Process] = set()
        self.stopping = threading.Event()

    def run(self, work: Callable[[Mapping[str, str]], None]) -> None:
        """Call ``work`` in every thread, with the environment of its processes, and wait.

        An exception in one of them, or Ctrl-C, ends all and is raised here.
        """
        with ThreadPoolExecutor(len(self._environments)) as pool:
            try:
                for done in as_completed([pool.submit(work, e) for e in self._environments]):
                    done.result()
            finally:
                self._stop()

    def run_process(
        self,
        folder: Path,
        environment: Mapping[str, str],
        report: Report,
        *,
        started: Callable[[Process], None] = lambda process: None,
    ) -> Outcome | None:
        """Run one process to its end.

        Args:
            folder, environment: for the process.
            report: gets what it reports.
            started: gets the process, once it runs.

        Returns:
            Its outcome; None where it was ended because everything ends.
        """
        with self._lock:
            if self.stopping.is_set():
                return None
            process = self._start(folder, environment)
            self._processes.add(process)
        try:
            started(process)
            outcome = process.wait(report)
        finally:
            with self._lock:
                self._processes.discard(process)
        interrupted = outcome.state == "interrupted" and self.stopping.is_set()
        return None if interrupted else outcome

    def _stop(self) -> None:
        with self._lock:
            self.stopping.set()
            for process in self._processes:
                process.kill()


def worker_environments(count: int) -> list[dict[str, str]]:
    """Environments for the processes of ``count`` workers, in turn over the GPUs of this machine.

    Without GPUs the workers share its cores, unless OMP_NUM_THREADS says otherwise.
    """
    # A process of a package that is not installed finds it where this one did.
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    common = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = [str(index) for index in range(torch.cuda.device_count())]
    devices = visible.split(",")[: len(numbers)] if visible else numbers
    if devices:
        return [
            common | {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]}
            for index in range(count)
        ]
    threads = max((os.cpu_count() or 1) // count, 1)
    own = {} if count == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
    return [common | own for _ in range(count)]

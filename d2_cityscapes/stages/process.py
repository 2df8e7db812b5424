"""A training in a process of its own, which ends with the process that started it."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

from d2_cityscapes.errors import D2CityscapesError, run
from d2_cityscapes.worker_pool import leave_with_parent

__all__ = ["train_in_fresh_process"]


def train_in_fresh_process(config_file: Path, opts: Sequence[str]) -> int:
    """Train what `d2c train --resume` would, and return the exit code.

    The process ends with this one, whether that is killed, interrupted by Ctrl-C or fails.

    Raises:
        D2CityscapesError: what the process raised of this kind, a user's mistake.
    """
    context = multiprocessing.get_context("spawn")
    mistakes, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(config_file, opts, theirs))
    try:
        with _without_ctrl_c():
            process.start()
        theirs.close()  # so that its end is seen here
        wait([mistakes, process.sentinel])
        if mistakes.poll():
            with contextlib.suppress(EOFError):
                text, details = mistakes.recv()
                raise D2CityscapesError(text, details=details)
        process.join()
    finally:
        if process.pid:  # it has started
            process.kill()
            process.join()
    return process.exitcode or 0


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """A process that starts in this block never sees Ctrl-C; for this one it waits for the end.

    A terminal sends it to both, and this one's answer is enough.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it in the block would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _train(config_file: Path, opts: Sequence[str], mistakes: Connection) -> None:
    from d2_cityscapes.engine.trainer import setup, train

    leave_with_parent()
    args = argparse.Namespace(config_file=str(config_file), opts=list(opts), eval_only=False)

    def main() -> None:
        try:
            # an override is for all stages, and need not act in each
            train(setup(args), resume=True, allow_unused=set(opts[::2]))
        except D2CityscapesError as error:
            mistakes.send((str(error), error.details))

    run(main)

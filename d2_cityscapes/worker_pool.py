"""Worker processes for long work on many images, and processes that end with their parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["leave_with_parent", "map_in_order", "worker_pool"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that leave Ctrl-C to the main process and end when it ends, even by kill -9.

    Args:
        workers: number of processes; 1 for none: the pool is None, and `map_in_order` does the work
            itself.

    Raises:
        D2CityscapesError: a number of workers below 1, or a worker was killed.
    """
    if workers < 1:
        raise D2CityscapesError(f"number of workers is {workers}; give 1 or more")
    if workers == 1:
        yield None
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise D2CityscapesError(
            "a worker process was killed, for lack of memory perhaps; run again with fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def map_in_order(
    pool: ProcessPoolExecutor | None, function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
    """Results in the order of the items, at most 16 of them waiting to be taken."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Future[_Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= 16:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave_with_parent()


def leave_with_parent() -> None:
    """Let this process end when the one that started it does, even by kill -9."""
    threading.Thread(target=_leave_behind_parent, daemon=True).start()


def _leave_behind_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)

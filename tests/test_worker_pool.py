"""Worker processes: results in order, and no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.worker_pool import map_in_order, worker_pool


def _square(number: int) -> int:
    return number * number


def _die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers):
    with worker_pool(workers) as pool:
        assert list(map_in_order(pool, _square, range(50))) == [i * i for i in range(50)]
        assert list(map_in_order(pool, _square, [])) == []


def test_one_worker_is_this_process():
    with worker_pool(1) as pool:
        assert list(map_in_order(pool, lambda _: os.getpid(), [0])) == [os.getpid()]


def test_a_killed_worker_and_a_wrong_number_are_one_line():
    with (
        pytest.raises(D2CityscapesError, match="a worker process was killed"),
        worker_pool(2) as pool,
    ):
        list(map_in_order(pool, _die, range(3)))
    with pytest.raises(D2CityscapesError, match="number of workers is 0"), worker_pool(0):
        raise AssertionError("unreachable")


_KILLED = """
import logging, os, signal
logging.disable()  # that Detectron2 is missing, where it is
from d2_cityscapes.worker_pool import map_in_order, worker_pool
with worker_pool(3) as pool:
    list(map_in_order(pool, abs, range(9)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_parent(repository):
    """They hold the standard output too: its end is reached when the last one has gone."""
    done = subprocess.run(
        [sys.executable, "-c", _KILLED], capture_output=True, timeout=60, cwd=repository
    )
    assert done.returncode == -signal.SIGKILL and done.stderr == b""

"""Memory, disks, shared memory and limits of this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from d2_cityscapes.doctor.findings import Finding
from d2_cityscapes.memory import available_memory

__all__ = ["machine_findings", "shared_memory"]

_TOPIC = "machine"
_GB = 1e9
_MIB = 2**20
_LEAST_MEMORY = 8 * _GB
_LEAST_DISK = 5 * _GB  # the checkpoints of a staged run, and more
_SLOW_DISK = 30  # MB/s, below which checkpoints hold up a training
# batches of 4 images of 1024 x 2048 with their maps, two ahead of each of 4 workers
_LEAST_SHARED = 512 * _MIB
_LEAST_FILES = 1024
_WRITTEN = 64 * _MIB


def machine_findings(output: Path) -> Iterator[Finding]:
    """Of processors, memory, the disk of an output folder, shared memory and open files.

    Args:
        output: a folder; where it does not exist yet, the nearest one above it counts.
    """
    yield Finding(_TOPIC, "processors", str(_processors()))
    memory = available_memory()
    if memory is not None:
        remedy = "close other programs, or train with fewer SOLVER.IMS_PER_BATCH and NUM_WORKERS"
        yield Finding(
            _TOPIC, "free memory", f"{memory / _GB:.1f} GB", remedy * (memory < _LEAST_MEMORY)
        )
    yield from _disk(output)
    yield from shared_memory()
    yield from _open_files()


def shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """The room in which loader processes hand over their batches; nothing where there is none."""
    if not folder.is_dir():
        return
    usage = shutil.disk_usage(folder)
    remedy = (
        "too little for four loader processes: docker run --shm-size=8g (or --ipc=host), or "
        "DATALOADER.NUM_WORKERS 0"
    )
    yield Finding(
        _TOPIC,
        "shared memory",
        f"{usage.free / _MIB:.0f} of {usage.total / _MIB:.0f} MiB free in {folder}",
        remedy * (usage.free < _LEAST_SHARED),
    )


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _disk(output: Path) -> Iterator[Finding]:
    folder = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    yield Finding(
        _TOPIC,
        "free disk",
        f"{free / _GB:.1f} GB in {folder}",
        "checkpoints of the stages need some 5 GB: name another --output" * (free < _LEAST_DISK),
    )
    try:
        speed = _write_speed(folder)
    except OSError as error:
        yield Finding(
            _TOPIC,
            "writing",
            f"{folder}: {error.strerror}",
            "make room there, or name a folder that can be written to",
        )
        return
    remedy = "slow: write to a local disk, and copy the results afterwards"
    yield Finding(_TOPIC, "writing", f"{speed:.0f} MB/s", remedy * (speed < _SLOW_DISK))


def _write_speed(folder: Path) -> float:
    """MB/s of a file that is on the disk in the end."""
    content = os.urandom(_MIB)
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        for _ in range(_WRITTEN // _MIB):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return _WRITTEN / 1e6 / (time.perf_counter() - started)


def _open_files() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = "ulimit -n 4096, before training"
    shown = "no limit" if limit == resource.RLIM_INFINITY else str(limit)
    yield Finding(_TOPIC, "open files", shown, remedy * (0 <= limit < _LEAST_FILES))

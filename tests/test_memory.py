"""Large arrays that come and go are given memory that is there already."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from d2_cityscapes.memory import is_out_of_memory, keep_freed_memory
from d2_cityscapes.shards.writer import write_shards

# By default glibc learns to keep one freed array, but not several that lived side by side.
PROGRAM = """
import resource, sys
import numpy as np
from d2_cityscapes.data import ShardReader

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        together = [np.ones(size, dtype=np.uint8) for size in range(2_000_000, 4_000_000, 400_000)]
        del together
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if "open" in sys.argv:
    ShardReader(sys.argv[1])[0]
faults()
print(faults())
"""


@pytest.mark.slow
def test_a_process_that_reads_shards_uses_freed_memory_again(
    tmp_path: Path, array_source: type
) -> None:
    pixels, ids = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 7)
    write_shards(
        [array_source("a_000000_000000", pixels, ids)], tmp_path, split="val", partitions=1
    )
    shard = str(next(tmp_path.glob("*.safetensors")))

    def page_faults(*arguments: str) -> int:
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, shard, *arguments]
        return int(subprocess.run(command, check=True, timeout=100, capture_output=True).stdout)

    assert page_faults("open") < 0.1 * page_faults()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no library without a name, others no mallopt."""

    def no_name(name: str | None) -> None:
        raise TypeError("argument 1 must be str, not None")

    for library in (no_name, lambda name: object()):
        monkeypatch.setattr("ctypes.CDLL", library)
        keep_freed_memory.cache_clear()
        keep_freed_memory()
    keep_freed_memory.cache_clear()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (MemoryError(), False),
    ],
)
def test_a_gpu_without_memory(error, expected):
    assert is_out_of_memory(error) is expected

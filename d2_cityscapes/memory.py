"""The C library's habits with large, short-lived arrays; and when memory runs out on a device."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from pathlib import Path

__all__ = ["available_memory", "fragmentation_advice", "is_out_of_memory", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 32 << 20  # bytes: the largest that glibc accepts as M_MMAP_THRESHOLD
_KEPT = 32 << 20  # bytes
_MUCH = 1 << 30  # bytes
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # its old name, and since 2.9
_ALLOC_FAILED = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU had no memory left: PyTorch's error, or that of cuBLAS or cuDNN."""
    import torch  # seconds, for commands that need it anyway

    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in _ALLOC_FAILED)


def fragmentation_advice(allocated: int, reserved: int) -> str:
    """What helps where PyTorch holds far more of a GPU than its tensors need, as one line.

    "" where it does not (up to a quarter, or 1 GiB, is usual), or where the help is in force.

    Args:
        allocated: most bytes that tensors held at once.
        reserved: most bytes that PyTorch held of the GPU.
    """
    lost = reserved - allocated
    if lost < max(_MUCH, allocated // 4):
        return ""
    if any("expandable_segments:True" in os.environ.get(name, "") for name in _ALLOCATOR):
        return ""
    return (
        f"{lost / 2**30:.1f} of {reserved / 2**30:.1f} GiB of the GPU are lost between tensors: "
        f"set the environment variable {_ALLOCATOR[0]}=expandable_segments:True"
    )


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep up to 32 MB of freed memory for its next arrays.

    By default glibc returns every freed image to the system, which has to find and clear its pages
    anew for the next one: several thousand page faults an image, and in a virtual machine more time
    than decoding and resizing it. Does nothing where the C library is another.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def available_memory() -> int | None:
    """Bytes of the host that programs can still have; None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return None

"""The C library's habits with large, short-lived arrays."""

from __future__ import annotations

import contextlib
import ctypes
import functools

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 32 << 20  # bytes: the largest that glibc accepts as M_MMAP_THRESHOLD
_KEPT = 32 << 20  # bytes


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

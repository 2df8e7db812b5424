"""What is counted while somebody watches, and the line of code it is counted for."""

from __future__ import annotations

import collections
import os
import sys

from fake_cuda.rules import FREE

__all__ = ["Watch", "lines_of_code"]

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_PACKAGES = ("d2_cityscapes", "detectron2", "torchvision", "fvcore")


class Watch:
    """What was seen while `FakeCuda.watch` was open.

    Attributes:
        waits: (what, line of the package, line of the caller) -> how often.
        operations: name -> how often, on the GPU.
        places: (line of the package, line of d2_cityscapes) -> operations, with `lines`.
        copied_in: bytes from the CPU to the GPU.
        copied_out: bytes back.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.waits: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.operations: collections.Counter[str] = collections.Counter()
        self.places: collections.Counter[tuple[str, str]] = collections.Counter()
        self.copied_in = self.copied_out = 0

    @property
    def total(self) -> int:
        """How often the host waited."""
        return sum(self.waits.values())

    @property
    def launches(self) -> int:
        """Operations that launch a kernel, at least one each."""
        return sum(count for name, count in self.operations.items() if name not in FREE)

    def table(self, most: int = 100) -> str:
        """The waits as lines of text, the most frequent first."""
        lines = [
            f"{self.name}: {self.total} waits, {self.launches} operations, "
            f"{self.copied_in / 1e6:.2f} MB in, {self.copied_out / 1e6:.3f} MB out"
        ]
        for (what, place, caller), count in self.waits.most_common(most):
            lines.append(f"  {count:5d}  {what:<24} {place:<58} <- {caller}")
        return "\n".join(lines)


def lines_of_code() -> tuple[str, str]:
    """The innermost line of a package that is not torch, and the innermost of d2_cityscapes."""
    frame = sys._getframe(1)
    first = own = ""
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((_HERE, "<")) and "/torch/" not in path:
            short = path
            for package in _PACKAGES:
                _, found, tail = path.rpartition(f"/{package}/")
                if found:
                    short = f"{package}/{tail}"
                    break
            line = f"{short}:{frame.f_lineno}"
            installed = "site-packages" in path or "/lib/python" in path
            if not first and (short.startswith(_PACKAGES) or not installed):
                first = line
            if short.startswith("d2_cityscapes"):
                own = line
                break
        frame = frame.f_back
    return first or "?", own or "-"

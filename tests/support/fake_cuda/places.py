"""The books: which storages are on the pretended GPU, which are pinned, which copies are under way.

A storage is known by its address and not kept alive; what was freed is forgotten in `sweep`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["CPU", "CUDA", "GRADIENT", "UNKNOWN", "UNSETTLED", "Books", "ReadTooEarly", "tensors_of"]

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
# Made by C++ code from the options of another tensor: they take any place. Python sees the first as
# of the CPU, the second, of a backward pass on the GPU, as of the GPU.
UNKNOWN, GRADIENT = "unknown", "gradient"
UNSETTLED = (UNKNOWN, GRADIENT)


class ReadTooEarly(RuntimeError):
    """The host read a copy from the GPU that might not have arrived."""


class Books:
    """Where each storage is.

    Attributes:
        allocated: bytes of live storages on the GPU, after `sweep`.
        peak: the most there were, in bytes.
        clock: number of copies begun so far; an event remembers it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.places: dict[int, tuple[Any, StorageWeakRef, int]] = {}  # -> place, storage, bytes
        self.pinned: dict[int, StorageWeakRef] = {}
        self.in_flight: dict[int, tuple[StorageWeakRef, int, str]] = {}  # -> storage, clock, line
        self.allocated = self.peak = 0
        self.clock = 0
        self._limit = 4096  # storages after which freed ones are looked for

    def place(self, tensor: torch.Tensor) -> Any:
        """CUDA, CPU, UNKNOWN or GRADIENT."""
        if not self.places:
            return CPU
        try:
            found = self.places.get(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # it has no storage
            return CPU
        return CPU if found is None else found[0]

    def put(self, tensor: torch.Tensor, place: Any) -> None:
        """Enters the storage of a tensor; one that is on the GPU leaves it to the CPU only."""
        with self._lock:
            storage = tensor.untyped_storage()
            key = storage._cdata
            old = self.places.get(key)
            if place == CPU:
                if old is not None:
                    self.allocated -= old[2]
                    del self.places[key]
                return
            if old is not None and old[0] in (place, CUDA):
                return
            size = storage.nbytes() if place == CUDA else 0
            self.places[key] = (place, StorageWeakRef(storage), size)
            self.allocated += size
            if len(self.places) > self._limit or self.allocated > self.peak + (1 << 20):
                self.sweep()
                self._limit = max(4096, 2 * len(self.places))

    def sweep(self) -> None:
        """Forgets what was freed; only what is alive then makes the peak."""
        with self._lock:
            for key in [k for k, (_, ref, _) in self.places.items() if ref.expired()]:
                self.allocated -= self.places.pop(key)[2]
            self.peak = max(self.peak, self.allocated)
            for key in [k for k, ref in self.pinned.items() if ref.expired()]:
                del self.pinned[key]
            for key in [k for k, (ref, *_) in self.in_flight.items() if ref.expired()]:
                del self.in_flight[key]

    # -- pinned memory

    def pin(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self.pinned[storage._cdata] = StorageWeakRef(storage)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.pinned

    # -- copies that do not wait

    def begin_copy(self, copy: torch.Tensor, line: str) -> None:
        """`copy`, on the CPU, will be written some time; PyTorch pins it for that."""
        self.clock += 1
        storage = copy.untyped_storage()
        self.in_flight[storage._cdata] = (StorageWeakRef(storage), self.clock, line)
        self.pin(copy)

    def under_way(self, tensor: torch.Tensor) -> str | None:
        """The line that began the copy into it, if that might not have arrived."""
        if not self.in_flight:
            return None
        found = self.in_flight.get(tensor.untyped_storage()._cdata)
        return None if found is None or found[0].expired() else found[2]

    def arrived(self, until: int) -> None:
        """All copies begun up to this clock are there."""
        with self._lock:
            for key in [k for k, (_, clock, _) in self.in_flight.items() if clock <= until]:
                del self.in_flight[key]


def tensors_of(args: Any, kwargs: Any = None) -> Iterator[torch.Tensor]:
    """The tensors among arguments, and in lists of them."""
    for value in (*args, *(kwargs.values() if kwargs else ())):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            for part in value:
                if isinstance(part, torch.Tensor):
                    yield part

"""Streams and events. All runs in order; what they settle is when the host may read a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fake_cuda.places import CUDA

if TYPE_CHECKING:
    from fake_cuda.device import FakeCuda

__all__ = ["Event", "Stream", "active"]

active: list[FakeCuda] = []  # the cards that are entered; the last one counts


class Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.clock: int | None = None

    def record(self, stream: Any = None) -> None:
        self.clock = active[-1].books.clock

    def synchronize(self) -> None:
        if self.clock is not None:
            active[-1].wait("event.synchronize", self.clock)

    def wait(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        if self.clock is not None:  # the GPU is always done: who asks does not wait
            active[-1].books.arrived(self.clock)
        return True

    def elapsed_time(self, other: Any) -> float:
        return 1.0


class Stream:
    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = CUDA

    def synchronize(self) -> None:
        active[-1].wait("stream.synchronize")

    def is_capturing(self) -> bool:
        return False

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

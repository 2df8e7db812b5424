"""Numbers on their way from a GPU to the host, such as those of the log: no step waits for its own.

What a step computes is kept on the GPU until the step is queued, goes to the host in one copy
beside what the GPU computes then, and is read when the next step is queued. So the host is one step
ahead of the GPU, and no more: where the GPU is slower, the host waits for the step before the one
that it has just queued, and the GPU always has one to work on.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor

__all__ = ["as_of", "flush_scalars", "put_scalar_later", "read_later"]

_Use = Callable[[list[float]], None]


def put_scalar_later(name: str, value: Tensor) -> None:
    """``get_event_storage().put_scalar`` of a number that a model has computed, for its log.

    On a GPU the storage gets it behind the next iteration, or by `flush_scalars`, as of the
    iteration and the name scope of this call; anywhere else at once.

    Args:
        name: of the scalar.
        value: 0-dim tensor of any type.
    """
    read_later(value, lambda numbers: get_event_storage().put_scalar(name, numbers[0]))


def read_later(values: Tensor, use: _Use) -> None:
    """Use numbers on the host as soon as nobody has to wait for them.

    Args:
        values: tensor of any shape, whose content does not change any more. Together with others
            of its iteration it may become float32.
        use: called once with the numbers in a row; `get_event_storage` is then as it is now, in its
            iteration and name scope too. On a GPU it is called by `flush_scalars`, and without that
            by what is read later in the iteration after the next one; anywhere else at once.
    """
    values = values.detach()
    if not values.is_cuda:
        use(values.reshape(-1).tolist())
        return
    storage = get_event_storage()
    queue = _queues.setdefault(storage, _Queue())
    if queue.kept and queue.kept[0].iteration != storage.iter:  # nobody flushes: another's trainer
        flush_scalars(storage)
    queue.kept.append(_Kept(use, values.numel(), storage.iter, storage._current_prefix))
    queue.values.append(values)


def flush_scalars(storage: EventStorage, *, wait: bool = False) -> None:
    """Begin to copy what the iteration has kept to be read later, and use what came before.

    A training step calls it at its end.

    Args:
        storage: the current one.
        wait: for what is copied now, too: after it nothing is left. For what was to be copied
            before, the host waits at any rate, see the top of the file.
    """
    queue = _queues.get(storage)
    if queue is None:
        return
    before = len(queue.copies)
    if queue.kept:
        queue.copies.append(_Copy(queue.kept, queue.values))
        queue.kept, queue.values = [], []
    for _ in range(len(queue.copies) if wait else before):
        for kept, numbers in queue.copies.popleft().read():
            with as_of(storage, kept.iteration, kept.prefix):
                kept.use(numbers)


@dataclass(frozen=True)
class _Kept:
    """What becomes of some numbers."""

    use: _Use
    count: int
    iteration: int
    prefix: str


class _Copy:
    """Numbers on their way."""

    def __init__(self, kept: Sequence[_Kept], values: Sequence[Tensor]) -> None:
        self._kept = kept
        together = torch.cat([part.reshape(-1) for part in values])
        # pinned by PyTorch, which also frees it only when it has arrived
        self._numbers = together.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event(blocking=True)  # who waits leaves the core to the loader
        self._arrived.record(torch.cuda.current_stream(together.device))

    def read(self) -> Iterator[tuple[_Kept, list[float]]]:
        if not self._arrived.query():
            self._arrived.synchronize()
        numbers = self._numbers.tolist()
        for kept in self._kept:
            yield kept, numbers[: kept.count]
            numbers = numbers[kept.count :]


@dataclass
class _Queue:
    kept: list[_Kept] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)  # of those, on the GPU
    copies: deque[_Copy] = field(default_factory=deque)


# gone with their storage: what nobody flushed before it ended is not wanted
_queues: weakref.WeakKeyDictionary[EventStorage, _Queue] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def as_of(storage: EventStorage, iteration: int, prefix: str = "") -> Iterator[None]:
    """The storage in another iteration and name scope."""
    now = storage.iter, storage._current_prefix
    storage.iter, storage._current_prefix = iteration, prefix
    try:
        yield
    finally:
        storage.iter, storage._current_prefix = now

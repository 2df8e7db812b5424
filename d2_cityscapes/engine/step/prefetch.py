"""The next batch on its way to the GPU while the model works on this one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["CopyStream", "GpuCopyStream", "Loader", "Prefetcher", "map_tensors"]


class Loader(Protocol):
    """What `Prefetcher` asks of a loader: that it can be stopped and resumed."""

    @property
    def seed(self) -> int: ...

    @property
    def num_workers(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: dict[str, int]) -> None: ...


class CopyStream(Protocol):
    """Copies to a device beside what it computes."""

    def copy(self, tensor: Tensor) -> Tensor:
        """Begin to copy; what comes back may not be used yet."""

    def wait(self) -> None:
        """Let the work that follows on the device wait for all copies begun so far."""

    def hand_over(self, tensor: Tensor) -> Tensor:
        """Keep the memory of a copy until the work that follows on the device is done with it."""


class GpuCopyStream:
    """`CopyStream` of one GPU, by a CUDA stream of its own and pinned memory."""

    def __init__(self, device: torch.device | str) -> None:
        self._stream = torch.cuda.Stream(device)

    def copy(self, tensor: Tensor) -> Tensor:
        # The stream brings its device along: a new thread would begin at GPU 0.
        with torch.cuda.stream(self._stream):
            return tensor.pin_memory().to(self._stream.device, non_blocking=True)

    def wait(self) -> None:
        self._consumer().wait_stream(self._stream)

    def hand_over(self, tensor: Tensor) -> Tensor:
        tensor.record_stream(self._consumer())
        return tensor

    def _consumer(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._stream.device)


class Prefetcher:
    """A training loader, one batch ahead on a GPU.

    Right before a batch is handed out, a thread begins to take the next one from the workers, to
    pin it and to copy it on a stream of its own. The batches, their order, and where a resumed run
    goes on are those of the loader: the batch that waits does not count as seen.

    It does nothing on the CPU, where workers are ahead already, nor for a loader without workers,
    which draws its random numbers from the generators that training uses too.
    """

    def __init__(
        self, loader: Loader, device: torch.device | str, *, stream: CopyStream | None = None
    ) -> None:
        """
        Args:
            loader: its batches are tensors in lists, tuples, dicts and objects with a method `to`.
            device: of the model.
            stream: how to copy; by default a `GpuCopyStream` where the device is a GPU.
        """
        self._loader = loader
        if stream is None and torch.device(device).type == "cuda":
            stream = GpuCopyStream(device)
        self._stream = stream
        self._state: dict[str, int] | None = None  # before the batch that waits

    @property
    def seed(self) -> int:
        return self._loader.seed

    @property
    def num_workers(self) -> int:
        return self._loader.num_workers

    @property
    def images(self) -> Any:
        """What is trained on, see `TrainLoader`."""
        return getattr(self._loader, "images", None)

    def state_dict(self) -> dict[str, int]:
        return self._loader.state_dict() if self._state is None else dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._loader.load_state_dict(state)
        self._state = None

    def __iter__(self) -> Iterator[Any]:
        if self._stream is None or self._loader.num_workers == 0:
            return iter(self._loader)
        return self._ahead(self._stream)

    def _ahead(self, stream: CopyStream) -> Iterator[Any]:
        if self._state is not None:  # what waited in the last iteration was not seen
            self._loader.load_state_dict(self._state)
        batches = iter(self._loader)

        def fetch() -> Any:
            return map_tensors(stream.copy, next(batches, None))

        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
            batch = fetch()  # here: this starts the workers
            while batch is not None:
                stream.wait()
                batch = map_tensors(stream.hand_over, batch)
                self._state = self._loader.state_dict()
                following = thread.submit(fetch)
                yield batch
                batch = following.result()


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with `function` of every tensor in it; what holds none is shared, not copied.

    Looks into lists, tuples, dicts and objects with a method `to`, such as Detectron2's Instances,
    Boxes and masks. Their own `to` would not do: that of Boxes cannot copy in the background.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(function, part) for part in value)
    if hasattr(value, "to") and hasattr(value, "__dict__"):
        changed = copy.copy(value)
        vars(changed).update(map_tensors(function, vars(value)))
        return changed
    return value

"""`torch.cuda` and `torch.accelerator`: one card, its memory, its streams."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from fake_cuda.streams import Event, Stream

if TYPE_CHECKING:
    from fake_cuda.device import FakeCuda

__all__ = ["replacements"]


def replacements(gpu: FakeCuda) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, what to put there)."""
    stream = Stream()
    for name, value in {**_card(gpu), **_work(gpu, stream), **_memory(gpu)}.items():
        yield torch.cuda, name, value
    random = _random()
    for name, value in random.items():
        yield torch.cuda, name, value
        yield torch.cuda.random, name, value
    yield torch.cuda, "default_generators", (torch.Generator(),)
    if not hasattr(torch, "accelerator"):  # before PyTorch 2.6
        return
    yield torch.accelerator, "is_available", lambda: True
    yield torch.accelerator, "current_accelerator", lambda *a, **k: torch.device("cuda")
    yield torch.accelerator, "device_count", lambda: 1
    yield torch.accelerator, "current_device_index", lambda: 0
    yield torch.accelerator, "current_stream", lambda *a: stream
    yield torch.accelerator, "synchronize", lambda *a: gpu.wait("cuda.synchronize")


def _nothing(*args: Any, **kwargs: Any) -> None: ...


@contextlib.contextmanager
def _within(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def _card(gpu: FakeCuda) -> dict[str, Any]:
    properties = types.SimpleNamespace(
        name=gpu.card,
        total_memory=gpu.memory,
        major=8,
        minor=6,
        multi_processor_count=80,
        max_threads_per_multi_processor=1536,
        warp_size=32,
        gcnArchName="",
    )
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": _nothing,
        "_lazy_init": _nothing,
        "_lazy_call": _nothing,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _nothing,
        "set_sync_debug_mode": lambda mode: setattr(gpu, "sync_debug_mode", mode),
        "device": _within,
        "device_of": _within,
        "is_bf16_supported": lambda *a, **k: True,
        "get_arch_list": lambda: ["sm_86"],
        "get_device_name": lambda *a: gpu.card,
        "get_device_capability": lambda *a: (8, 6),
        "get_device_properties": lambda *a: properties,
    }


def _work(gpu: FakeCuda, stream: Stream) -> dict[str, Any]:
    return {
        "Event": Event,
        "Stream": Stream,
        "stream": _within,
        "set_stream": _nothing,
        "current_stream": lambda *a: stream,
        "default_stream": lambda *a: stream,
        "synchronize": lambda *a: gpu.wait("cuda.synchronize"),
        "is_current_stream_capturing": lambda: False,
    }


def _memory(gpu: FakeCuda) -> dict[str, Any]:
    def swept(value: Callable[[], Any]) -> Callable[..., Any]:
        def read(*args: Any, **kwargs: Any) -> Any:
            gpu.books.sweep()
            return value()

        return read

    def reset() -> None:
        gpu.books.peak = gpu.books.allocated

    return {
        "empty_cache": _nothing,
        "ipc_collect": _nothing,
        "memory_allocated": swept(lambda: gpu.books.allocated),
        "max_memory_allocated": swept(lambda: gpu.books.peak),
        "memory_reserved": swept(lambda: gpu.books.allocated),
        "max_memory_reserved": swept(lambda: gpu.books.peak),
        "mem_get_info": swept(lambda: (gpu.memory - gpu.books.allocated, gpu.memory)),
        "reset_peak_memory_stats": swept(reset),
        "reset_max_memory_allocated": swept(reset),
    }


def _random() -> dict[str, Any]:
    """Draws are the CPU generator's: that of the card has no state of its own."""
    return {
        "manual_seed": _nothing,
        "manual_seed_all": _nothing,
        "seed_all": _nothing,
        "initial_seed": lambda: 0,
        "get_rng_state": lambda *a: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "set_rng_state": _nothing,
        "set_rng_state_all": _nothing,
    }

"""Functions that make tensors: on the place that `device` names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from fake_cuda.places import CPU, CUDA

if TYPE_CHECKING:
    from fake_cuda.device import FakeCuda

__all__ = ["replacements"]

_FACTORIES = (
    "empty", "empty_permuted", "empty_strided", "ones", "arange", "eye", "full", "linspace",
    "logspace", "rand", "randn", "randint", "randperm", "range", "zeros", "tril_indices",
    "triu_indices", "hann_window", "hamming_window", "normal",
)  # fmt: skip
_FROM_DATA = ("tensor", "as_tensor", "asarray", "scalar_tensor")
_LIKE = ("zeros", "ones", "empty", "full", "rand", "randn", "randint")
_NEW = ("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", "new_tensor")


def replacements(gpu: FakeCuda) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, what to put there)."""
    for name in _FACTORIES:
        yield torch, name, _factory(gpu, getattr(torch, name))
    for name in _FROM_DATA:
        yield torch, name, _from_data(gpu, getattr(torch, name), shares=name.startswith("as"))
    for name in _LIKE:
        yield torch, f"{name}_like", _like(gpu, getattr(torch, f"{name}_like"))
    for name in _NEW:
        yield torch.Tensor, name, _like(gpu, getattr(torch.Tensor, name))
    yield torch, "Generator", _cpu_generator()
    yield torch.nn.functional, "one_hot", _one_hot(gpu)


def _factory(gpu: FakeCuda, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(function)
    def make(*args, **kwargs):
        device = _device(kwargs.pop("device", None))
        if device is not None and device.type != "cuda":
            kwargs["device"] = device
        return _made(gpu, function, device, args, kwargs)

    return make


def _from_data(
    gpu: FakeCuda, function: Callable[..., torch.Tensor], *, shares: bool
) -> Callable[..., torch.Tensor]:
    """`shares`: a tensor that is already right is returned as it is."""
    factory = _factory(gpu, function)

    @functools.wraps(function)
    def make(*args, **kwargs):
        source = args[0] if args else None
        if isinstance(source, torch.Tensor):
            device = _device(kwargs.pop("device", None)) or source.device
            dtype = kwargs.get("dtype") or (args[1] if len(args) > 1 else None)
            if shares:
                return gpu.move(source, device, dtype=dtype)
            result = gpu.move(source.detach(), device, dtype=dtype, copy=True)
            return result.requires_grad_(kwargs.get("requires_grad", False))
        if isinstance(source, list | tuple):
            for part in _flat(source):
                if gpu.on_gpu(part):
                    gpu.wait("tensor() of GPU numbers")
        result = factory(*args, **kwargs)
        if gpu.on_gpu(result):
            gpu.copy_in(result, False)
        return result

    return make


def _like(gpu: FakeCuda, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(function)
    def make(source, *args, **kwargs):
        device = _device(kwargs.pop("device", None)) or source.device
        if device.type == "meta":
            kwargs["device"] = device
        result = _made(gpu, function, device, (source, *args), kwargs)
        if device.type == "cuda" and function.__name__ == "new_tensor":
            gpu.copy_in(result, False)
        return result

    return make


def _made(
    gpu: FakeCuda,
    function: Callable[..., torch.Tensor],
    device: torch.device | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """The tensor that `function` makes, entered in the books."""
    if device is not None and device.index not in (None, 0):
        raise RuntimeError("CUDA error: invalid device ordinal")
    on_gpu = device is not None and device.type == "cuda"
    pin = kwargs.pop("pin_memory", False)
    with gpu.quiet(place=CUDA if on_gpu else CPU):
        result = function(*args, **kwargs)
    if on_gpu:
        gpu.books.put(result, CUDA)
        gpu.operation(f"aten::{function.__name__}", launches=False)
    if pin:
        gpu.books.pin(result)
    return result


def _cpu_generator() -> type:
    constructor = torch.Generator

    class Generator(constructor):  # type: ignore[misc, valid-type]
        """Draws by the CPU's generator, whatever the device."""

        def __new__(cls, device="cpu"):
            return constructor.__new__(constructor, "cpu")

    return Generator


def _one_hot(gpu: FakeCuda) -> Callable[..., torch.Tensor]:
    one_hot = torch.nn.functional.one_hot

    def make(tensor, num_classes=-1):
        if not gpu.on_gpu(tensor):
            return one_hot(tensor, num_classes)
        if num_classes == -1:
            gpu.wait("one_hot without num_classes")
        with gpu.quiet():  # with a number of classes the CPU looks at the values, a GPU does not
            result = one_hot(tensor, num_classes)
        gpu.books.put(result, CUDA)
        return result

    return make


def _device(value: Any) -> torch.device | None:
    if value is None:
        return None
    return torch.device("cuda", value) if isinstance(value, int) else torch.device(value)


def _flat(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _flat(value)

"""Properties and methods of `torch.Tensor` that tell or change the place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from fake_cuda.places import CPU, CUDA, GRADIENT

if TYPE_CHECKING:
    from fake_cuda.device import FakeCuda

__all__ = ["replacements"]


def replacements(gpu: FakeCuda) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, what to put there)."""
    for name, value in (*_telling(gpu), *_moving(gpu), *_reading(gpu), *_pinning(gpu)):
        yield torch.Tensor, name, value


def _telling(gpu: FakeCuda) -> Iterator[tuple[str, Any]]:
    device_of = torch._C.TensorBase.device.__get__

    def place(self: torch.Tensor) -> torch.device:
        found = gpu.books.place(self)
        return CUDA if found in (CUDA, GRADIENT) else device_of(self)

    yield "device", property(place)
    yield "is_cuda", property(lambda self: place(self).type == "cuda")
    yield "is_cpu", property(lambda self: place(self).type == "cpu")
    yield "get_device", lambda self: 0 if gpu.on_gpu(self) else -1


def _moving(gpu: FakeCuda) -> Iterator[tuple[str, Any]]:
    kind = torch.Tensor.type

    def type_(self, dtype=None, *args, **kwargs):
        if dtype is None:
            found = kind(self)
            return found.replace("torch.", "torch.cuda.") if gpu.on_gpu(self) else found
        if isinstance(dtype, str) and dtype.startswith("torch.cuda."):
            return gpu.move(kind(self, dtype.replace("cuda.", "")), CUDA)
        return kind(self, dtype, *args, **kwargs)

    def to(self, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        elif isinstance(kwargs.get("other"), torch.Tensor):
            other = kwargs.pop("other")
            args = (other.device, other.dtype, *args)
        copy = kwargs.pop("copy", False)
        numbers = [a for a in args if isinstance(a, bool)]
        if len(numbers) == 2:
            copy = numbers[1]
            args = args[:-1]
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        return gpu.move(
            self,
            self.device if device is None else device,
            non_blocking=bool(non_blocking),
            dtype=dtype,
            copy=copy,
            memory_format=memory_format,
        )

    def cuda(self, device=None, non_blocking=False, memory_format=None):
        return gpu.move(self, CUDA, non_blocking=non_blocking, memory_format=memory_format)

    def cpu(self, memory_format=None):
        return gpu.move(self, CPU, memory_format=memory_format)

    yield "type", type_
    yield "to", to
    yield "cuda", cuda
    yield "cpu", cpu


def _reading(gpu: FakeCuda) -> Iterator[tuple[str, Any]]:
    base, shown = torch._C.TensorBase, torch.Tensor.__repr__

    def numpy(self, *args, **kwargs):
        if gpu.on_gpu(self):
            gpu.mistake(
                TypeError(
                    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to "
                    "copy the tensor to host memory first."
                )
            )
            self = gpu.move(self, CPU)
        gpu.check_read(self)
        return base.numpy(self, *args, **kwargs)

    def tolist(self):
        if gpu.on_gpu(self):
            self = gpu.move(self, CPU)
        gpu.check_read(self)
        return base.tolist(self)

    def text(self, **kwargs):
        if not gpu.on_gpu(self):
            return shown(self, **kwargs)
        gpu.wait("repr")
        with gpu.quiet():
            return shown(self, **kwargs)

    yield "numpy", numpy
    yield "tolist", tolist
    yield "__repr__", text


def _pinning(gpu: FakeCuda) -> Iterator[tuple[str, Any]]:
    def pin_memory(self, device=None):
        if gpu.on_gpu(self):
            raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")
        if gpu.books.is_pinned(self):
            return self
        with gpu.quiet():
            result = self.detach().clone()
        gpu.books.pin(result)
        return result

    def record_stream(self, stream):
        if not gpu.on_gpu(self):
            raise RuntimeError("record_stream is not implemented for tensors of the CPU")

    yield "pin_memory", pin_memory
    yield "is_pinned", lambda self, device=None: gpu.books.is_pinned(self)
    yield "record_stream", record_stream

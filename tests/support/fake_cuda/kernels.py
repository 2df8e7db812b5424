"""Every operation of every tensor: checks places, counts, enters the results in the books."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fake_cuda.places import CPU, CUDA, GRADIENT, UNKNOWN, UNSETTLED, tensors_of
from fake_cuda.rules import (
    COPIES,
    FREE,
    INDEXING,
    NO_CUDA_KERNEL,
    SCALARS_OK,
    SLOW_IN_HALF,
    UNSIGNED_KERNELS,
    VIEWS,
    WAITS,
    WIDE_UNSIGNED,
)

if TYPE_CHECKING:
    from fake_cuda.device import FakeCuda

__all__ = ["Kernels", "original_to"]

original_to = torch.Tensor.to
_HALF = (torch.float16, torch.bfloat16)


class Kernels(TorchDispatchMode):
    """What a CUDA device would say to an operation; the numbers are of the CPU's kernel."""

    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        gpu, books = self.gpu, self.gpu.books
        quiet = gpu.quiet_place
        if quiet is not None:
            result = func(*args, **kwargs)
            if quiet != CPU:
                self._enter(result, quiet)
            return result
        tensors = list(tensors_of(args, kwargs))
        places = [books.place(tensor) for tensor in tensors]
        name = func._schema.name
        if CUDA not in places:
            return self._off_gpu(func, name, args, kwargs, tensors, places)
        gpu.backward = torch._C._current_graph_task_id()
        gpu.operation(name, launches=name not in FREE)
        cpu = [t for t, place in zip(tensors, places, strict=True) if place == CPU]
        if cpu or any(place in UNSETTLED for place in places):
            self._check_places(func, name, args, kwargs, cpu)
        self._check_kernel(name, tensors)
        self._count_waits(name, args, kwargs)
        result = _computed(func, name, args, kwargs)
        if name not in COPIES or name == "aten::_to_copy":  # of a type or layout: see `move`
            self._enter(result, CUDA)
        return result

    def _off_gpu(self, func, name, args, kwargs, tensors, places) -> Any:
        gpu = self.gpu
        if name == "aten::_local_scalar_dense" and tensors:
            gpu.check_read(tensors[0])
        result = _computed(func, name, args, kwargs)
        unknown = any(place in UNSETTLED for place in places)
        if unknown and any(p == CPU and t.dim() for p, t in zip(places, tensors, strict=True)):
            return result  # it was a tensor of the CPU
        if unknown or not tensors:  # factories of Python are wrapped: this was C++ code
            backward = torch._C._current_graph_task_id()
            here = backward != -1 and backward == gpu.backward
            self._enter(result, GRADIENT if here or GRADIENT in places else UNKNOWN)
        return result

    def _enter(self, result: Any, place: Any) -> None:
        gpu = self.gpu
        for tensor in tensors_of(result if isinstance(result, tuple | list) else (result,)):
            if gpu.books.place(tensor) != CUDA:
                gpu.books.put(tensor, place)
        if gpu.books.allocated > gpu.memory:
            gpu.books.sweep()
            if gpu.books.allocated > gpu.memory:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. (pretended)")

    def _check_places(self, func, name, args, kwargs, cpu) -> None:
        """Raises where a tensor of the CPU meets one of the GPU, as CUDA does."""
        if name in COPIES:
            if name == "aten::copy_" and cpu:
                self._copy(
                    *args[:2], bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
                )
            return
        if name in INDEXING and cpu:
            cpu = self._check_indices(args, cpu)
        if name.startswith(("aten::_foreach", "aten::_fused")):
            cpu = [t for t in cpu if t.dim()]
        if not cpu:
            return
        scalars = torch.Tag.pointwise in func.tags or name in SCALARS_OK
        if scalars and all(t.dim() == 0 for t in cpu):
            return
        if name.endswith(("is_same_size", "set_", "resize_", "_has_compatible_shallow_copy_type")):
            return
        shapes = ", ".join(str(tuple(t.shape)) for t in cpu)
        self.gpu.mistake(
            RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! ({name}; on the CPU: {shapes})"
            )
        )

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
        if self.gpu.books.place(target) == CPU:
            self.gpu.copy_out(source, target, non_blocking)
        else:
            self.gpu.copy_in(source, non_blocking)

    def _check_indices(self, args: Any, cpu: list[torch.Tensor]) -> list[torch.Tensor]:
        """Copies CPU indices of a GPU tensor, as CUDA does; what else is on the CPU is left."""
        place = self.gpu.books.place
        if place(args[0]) == CPU:  # a GPU index of a CPU tensor is refused, unless 0-dim
            return cpu
        indices = [index for index in args[1] if index is not None]
        for index in indices:
            if place(index) == CPU:
                self.gpu.copy_in(index, False, "index")
        return [t for t in cpu if all(t is not index for index in indices)]

    def _check_kernel(self, name: str, tensors: list[torch.Tensor]) -> None:
        first = tensors[0].dtype
        missing = first in NO_CUDA_KERNEL.get(name, ())
        if first in WIDE_UNSIGNED and name not in UNSIGNED_KERNELS and not name.endswith(VIEWS):
            missing = missing or hasattr(torch.ops.aten, name.partition("::")[2])
        if missing:
            self.gpu.mistake(RuntimeError(f'"{name}" not implemented for {first} on CUDA'))

    def _count_waits(self, name: str, args: Any, kwargs: Any) -> None:
        if name in WAITS:
            self.gpu.wait(WAITS[name])
        elif name in INDEXING:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            if masks and name != "aten::index" and args[2].numel() == 1 and len(args[1]) == 1:
                return  # becomes masked_fill
            for _ in masks:
                self.gpu.wait("bool mask index")
        elif name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            self.gpu.wait("repeat_interleave")


def _computed(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """By the CPU's kernel; sums of products in half precision are added in float32 and rounded."""
    if name not in SLOW_IN_HALF:
        return func(*args, **kwargs)
    half = [t.dtype for t in tensors_of(args, kwargs) if t.dtype in _HALF]
    if not half:
        return func(*args, **kwargs)

    def up(value: Any) -> Any:
        is_half = isinstance(value, torch.Tensor) and value.dtype in _HALF
        return original_to(value, torch.float32) if is_half else value

    result = func(*map(up, args), **{name: up(value) for name, value in kwargs.items()})
    if isinstance(result, torch.Tensor):
        return original_to(result, half[0])
    return tuple(None if part is None else original_to(part, half[0]) for part in result)

"""CPU autocast with CUDA's lists of operations."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fake_cuda.rules import IN_FLOAT32_ON_CUDA

__all__ = ["cuda_autocast_lists"]

_HALF = (torch.float16, torch.bfloat16)


@contextlib.contextmanager
def cuda_autocast_lists() -> Iterator[None]:
    """Gives CPU autocast the lists of CUDA's, where they would differ."""
    library = torch.library.Library("aten", "IMPL")
    vision = torch.library.Library("torchvision", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "overriding a previously registered kernel"
        for name in IN_FLOAT32_ON_CUDA:
            packet, _, overload = name.partition(".")
            with contextlib.suppress(RuntimeError, AttributeError):  # another version's operation
                found = getattr(getattr(torch.ops.aten, packet), overload or "default")
                library.impl(name, _in_float32(found), "AutocastCPU")
        with contextlib.suppress(RuntimeError):
            library.impl("binary_cross_entropy", _banned, "AutocastCPU")
        with contextlib.suppress(RuntimeError, AttributeError, ImportError):
            import torchvision._autograd_registrations as registrations

            for name in ("roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
                vision.impl(name, getattr(registrations, f"_autocast_{name}"), "AutocastCPU")
    try:
        yield
    finally:
        library._destroy()
        vision._destroy()


def _in_float32(overload: Any) -> Callable[..., Any]:
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            return overload(*map(_cast, args), **{k: _cast(v) for k, v in kwargs.items()})

    return run


def _cast(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in _HALF:
        return value.float()
    return value


def _banned(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError(
        "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast."
    )

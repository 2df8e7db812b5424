"""What a model keeps in memory between its forward and its backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["saved_activations"]


@contextlib.contextmanager
def saved_activations(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Counts what calls of the model keep in memory for the backward pass.

    Yields:
        Bytes of the call that kept most. Each storage counts once, whole; those of the model's
        parameters and buffers do not, but their copies in another precision do.
    """
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}
    most = 0
    watch = contextlib.ExitStack()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that kept itself would never be freed

    def before(*_: Any) -> None:
        storages.clear()
        watch.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x))

    def after(*_: Any) -> None:
        nonlocal most
        watch.close()
        most = max(most, sum(storages.values()))

    handles = (
        model.register_forward_pre_hook(before),
        model.register_forward_hook(after, always_call=True),
    )
    try:
        yield lambda: most
    finally:
        for handle in handles:
            handle.remove()

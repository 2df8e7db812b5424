"""A model that keeps what is frozen as it is, whoever trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from d2_cityscapes.modeling.freezing.freeze import FreezeError, unwrap

__all__ = ["KeepsFrozen", "await_schedule", "keep_in_eval"]


class KeepsFrozen:
    """Mixed into a meta-architecture, which comes behind it in the list of bases.

    ``train()`` leaves the norms of frozen modules in eval mode, so that their statistics stay. A
    schedule of unfreezing needs someone who carries it out: without `FreezeHook`, training fails
    instead of leaving everything frozen.
    """

    training: bool

    def train(self, mode: bool = True) -> Any:
        """As in PyTorch, but for the norms of what is frozen."""
        super().train(mode)  # type: ignore[misc]
        for layer in vars(self).get("kept_in_eval", ()):
            layer.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in the meta-architecture."""
        if self.training and vars(self).get("schedule_waits", False):
            raise FreezeError(
                "MODEL.FREEZE.SCHEDULE: nothing here would unfreeze what it names: train with "
                "d2_cityscapes.engine.Trainer, or register its FreezeHook"
            )
        return super().forward(*args, **kwargs)  # type: ignore[misc]


def keep_in_eval(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    """From now on ``train()`` leaves these layers of a `KeepsFrozen` alone in eval mode."""
    vars(unwrap(model))["kept_in_eval"] = tuple(layers)


def await_schedule(model: nn.Module, waits: bool) -> None:
    """Whether a `KeepsFrozen` still waits for someone to carry out MODEL.FREEZE.SCHEDULE."""
    vars(unwrap(model))["schedule_waits"] = waits

"""Training hooks."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.engine import HookBase
from torch import nn

from d2_cityscapes.modeling.freeze import (
    FreezeError,
    checksums,
    find_modules,
    frozen_tensors,
    norm_layers,
    unwrap,
)

__all__ = ["FreezeHook"]


class FreezeHook(HookBase):
    """Guards what `freeze_modules` froze.

    Before each step it puts the norm layers of frozen modules back into eval mode, because every
    evaluation ends with ``model.train()``. When training ends it compares checksums with those from
    its beginning (after the weights were loaded) and fails if anything frozen moved.

    A hook that runs the model in training mode between two steps, say for a validation loss, has to
    call `apply_norm_eval` first.
    """

    def __init__(self, patterns: Sequence[str], *, norm_eval: bool = True):
        """
        Args:
            patterns: cfg.MODEL.FREEZE.MODULES.
            norm_eval: cfg.MODEL.FREEZE.NORM_EVAL. False lets norm statistics move and leaves them
                out of the check.
        """
        self._patterns = list(patterns)
        self._norm_eval = norm_eval
        self._frozen: list[str] = []
        self._norms: list[nn.Module] = []
        self._before: dict[str, str] = {}

    def before_train(self) -> None:
        model = unwrap(self.trainer.model)
        self._frozen = find_modules(model, self._patterns)
        for name in self._frozen:
            if any(p.requires_grad for p in model.get_submodule(name).parameters()):
                raise FreezeError(f"{name} is not frozen: call freeze_modules before the optimizer")
        self._norms = norm_layers(model, self._frozen) if self._norm_eval else []
        self._before = self._checksums()
        self.apply_norm_eval()

    def before_step(self) -> None:
        self.apply_norm_eval()

    def after_train(self) -> None:
        # Also called after an exception, which must not be hidden behind ours.
        if self.trainer.iter < self.trainer.max_iter:
            return
        after = self._checksums()
        moved = [name for name, checksum in self._before.items() if after[name] != checksum]
        if moved:
            modules = [m for m in self._frozen if any(n.startswith(f"{m}.") for n in moved)]
            raise FreezeError(
                f"frozen modules changed during training: {', '.join(modules)} "
                f"({len(moved)} tensors, first {moved[0]})"
            )

    def apply_norm_eval(self) -> None:
        """Put the norm layers of frozen modules into eval mode, unless `norm_eval` is off."""
        for layer in self._norms:
            layer.eval()

    def _checksums(self) -> dict[str, str]:
        model = self.trainer.model
        return checksums(frozen_tensors(model, self._frozen, norm_statistics=self._norm_eval))

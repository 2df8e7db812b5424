"""TEST.PRECISE_BN, so that a resumed run gives the statistics of one without the stop."""

from __future__ import annotations

from detectron2.engine import HookBase
from detectron2.engine.hooks import PreciseBN

from d2_cityscapes.modeling.freezing.freeze import unwrap

__all__ = ["RepeatablePreciseBN", "repeatable"]


class RepeatablePreciseBN(PreciseBN):
    """Detectron2's hook, which computes each time from the same images: the first ones of the run.

    Detectron2's goes on in the data from one time to the next, by a place that no checkpoint holds.
    """

    def update_stats(self) -> None:
        """Update the norms of the model from NUM_ITER batches."""
        seed = self.trainer.data_loader.seed  # a random one is kept in the checkpoint
        self._data_loader.load_state_dict({"seed": seed, "position": 0})
        self._data_iter = None
        super().update_stats()
        self._data_iter = None  # and with it the worker processes


def repeatable(hook: HookBase) -> HookBase:
    """A `RepeatablePreciseBN` in place of Detectron2's hook; any other hook itself."""
    if not isinstance(hook, PreciseBN) or hook._disabled:
        return hook
    model = unwrap(hook._model)  # FreezeHook may replace the wrapper
    return RepeatablePreciseBN(hook._period, model, hook._data_loader, hook._num_iter)

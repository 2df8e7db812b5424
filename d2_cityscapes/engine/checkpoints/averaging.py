"""The exponential moving average of the weights that train: kept, saved, and evaluated."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.hooks import RemovableHandle

from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.step.optimizer import optimized_parameters
from d2_cityscapes.engine.step.training_step import norm_buffers
from d2_cityscapes.modeling.freezing.freeze import unwrap
from d2_cityscapes.run_folder import FINAL, FINAL_AVERAGE

__all__ = ["AveragingHook", "check_averaging", "final_weights"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class AveragingHook(HookBase):
    """Keeps average = d * average + (1 - d) * weights, from the first weights on.

    Of everything that the optimizer holds, after each of its steps: a step that is left out does
    not count, nor does it matter what is frozen for now, whose average is its value. The running
    statistics of batch norms are averaged along with the weights that they belong to.

    d is the decay, but no more than (1 + n) / (10 + n) behind n steps: of a short training the
    average is one of its last weights, and never mostly those that it began with.

    After the last step the model with the average in place of its weights is written as
    OUTPUT_DIR/model_final_ema.pth, for evaluation or to start another training from. The state,
    averages by name and the number of steps, is part of every checkpoint.
    """

    def __init__(self, decay: float) -> None:
        """
        Args:
            decay: SOLVER.EMA_DECAY, above 0.
        """
        self._decay = decay
        self._steps = 0
        self._weights: dict[str, Tensor] = {}
        self._averages: dict[str, Tensor] = {}
        self._handle: RemovableHandle | None = None

    def before_train(self) -> None:
        optimizer, model = self.trainer.optimizer, unwrap(self.trainer.model)
        optimized = {id(parameter) for parameter in optimized_parameters(optimizer)}
        parameters = model.named_parameters()
        self._weights = {n: p.detach() for n, p in parameters if id(p) in optimized}
        statistics = norm_buffers(model).items()
        self._weights |= {n: b for n, b in statistics if b.is_floating_point()}  # not the counters
        if self.trainer.start_iter and not self._averages:
            logger.warning(
                "no average of the weights in the checkpoint: it begins with those of iteration %d",
                self.trainer.start_iter,
            )
        loaded, self._averages = self._averages, {}
        for name, weight in self._weights.items():
            # in the layout of the weight
            self._averages[name] = torch.empty_like(weight).copy_(loaded.get(name, weight))
        self._handle = optimizer.register_step_post_hook(lambda *_: self._follow())

    def after_train(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        # Also called after an exception, when there is nothing final.
        if self.trainer.iter >= self.trainer.max_iter and comm.is_main_process():
            path = Path(self.trainer.cfg.OUTPUT_DIR) / FINAL_AVERAGE
            with self.in_place():
                self.trainer.checkpointer.save_weights(path)
            logger.info("average of the weights written to %s", path)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for its weights, which it gets back unchanged."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def averaged(self, evaluate: Callable[[], _Result]) -> Callable[[], _Result]:
        """``evaluate`` with the average in place."""

        def evaluate_average() -> _Result:
            with self.in_place():
                return evaluate()

        return evaluate_average

    def state_dict(self) -> dict[str, Any]:
        return {"averages": dict(self._averages), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For the training that begins next."""
        self._averages, self._steps = dict(state["averages"]), int(state["steps"])

    def _follow(self) -> None:
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        update = get_ema_multi_avg_fn(decay)
        update(list(self._averages.values()), list(self._weights.values()), None)
        self._steps += 1

    def _exchange(self) -> None:
        for name, weight in self._weights.items():
            average = self._averages[name]
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)


def check_averaging(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: SOLVER.EMA_DECAY is no decay.
    """
    if not 0 <= cfg.SOLVER.EMA_DECAY < 1:
        raise ConfigError(
            f"SOLVER.EMA_DECAY {cfg.SOLVER.EMA_DECAY}: use a number from 0, for none, to below 1"
        )


def final_weights(cfg: CfgNode) -> Path:
    """The file with the weights that the last evaluation of a training was of."""
    return Path(cfg.OUTPUT_DIR) / (FINAL_AVERAGE if cfg.SOLVER.EMA_DECAY > 0 else FINAL)

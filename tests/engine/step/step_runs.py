"""Some steps of a trainer by itself, what they log, and what they leave."""

from __future__ import annotations

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn


def sgd(model: nn.Module, **options) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)


def run(trainer: SimpleTrainer, iterations: int, start: int = 0) -> list[dict[str, float]]:
    """Train, and return what each iteration logs."""
    logged = []
    with EventStorage(start) as storage:
        for trainer.iter in range(start, start + iterations):
            storage.iter = trainer.iter
            trainer.run_step()
            now = {name: v for name, (v, i) in storage.latest().items() if i == trainer.iter}
            logged.append({name: v for name, v in now.items() if "time" not in name})
    return logged


def state_of(trainer: SimpleTrainer) -> dict[str, torch.Tensor]:
    """Weights, norm statistics and momenta, copied."""
    momenta = {
        f"momentum.{i}": state["momentum_buffer"]
        for i, state in trainer.optimizer.state_dict()["state"].items()
    }
    return {k: v.clone() for k, v in (trainer.model.state_dict() | momenta).items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not a[name].equal(b[name])] == []

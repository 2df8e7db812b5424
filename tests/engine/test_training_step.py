"""Several batches a step: the gradients of one large batch, and data and schedule to match."""

from __future__ import annotations

import copy
import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_cityscapes.engine.training_step import accumulating
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.trainer import setup, train

DATA = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """Two losses, each a mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(5, 3)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.layer(batch)
        return {"loss_a": found.square().mean(), "loss_b": found.abs().mean()}


def run(steps: int, batch_size: int, iterations: int, model: nn.Module | None = None):
    """Train, and return the model, its last gradients and the last logged losses."""
    model = model or Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = accumulating(SimpleTrainer(model, DATA.split(batch_size), optimizer), steps)
    with EventStorage() as storage:
        for trainer.iter in range(iterations):
            trainer.run_step()
            storage.step()
        logged = {name: value for name, (value, _) in storage.latest().items() if "loss" in name}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    return model, gradients, logged


def test_small_batches_make_the_step_of_a_large_one():
    large, large_gradients, large_losses = run(1, 8, 3)
    small, small_gradients, small_losses = run(4, 2, 3)
    torch.testing.assert_close(small_gradients, large_gradients, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(small.state_dict(), large.state_dict(), rtol=1e-6, atol=1e-7)
    assert small_losses == pytest.approx(large_losses, rel=1e-6)
    assert {"loss_a", "loss_b", "total_loss"} <= set(small_losses)


def test_one_batch_a_step_is_detectron2s_own():
    trainer = SimpleTrainer(Model(), [], None)
    assert accumulating(trainer, 1) is trainer


def test_less_than_one_batch_is_refused():
    with pytest.raises(ConfigError, match="ACCUMULATE_STEPS 0: use 1 or more"):
        accumulating(SimpleTrainer(Model(), [], None), 0)


def test_two_processes_exchange_gradients_once_a_step(tmp_path: Path):
    """And end with the weights of one process that sees all of it."""
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pth") for rank in range(2)]
    assert all(ranks[0]["weights"][name].equal(ranks[1]["weights"][name]) for name in ("weight",))
    assert ranks[0]["exchanges"] == 2  # of 4 batches
    optimizer_free = Model()
    _, gradients, _ = run(1, 4, 1, copy.deepcopy(optimizer_free))
    torch.testing.assert_close(ranks[0]["first"], gradients[0], rtol=1e-6, atol=1e-7)


def test_a_training_counts_steps_and_resumes(repository, datasets, tiny_opts, tmp_path):
    """Its epochs are of the effective batch, and a stop leaves no trace."""

    def train_to(name: str, last: str, *, resume: bool = False) -> dict:
        opts = [*tiny_opts, "SOLVER.IMS_PER_BATCH", "2", "SOLVER.ACCUMULATE_STEPS", "2"]
        opts += [last, "2.0" if "EPOCHS" in last else "4", "SOLVER.CHECKPOINT_PERIOD", "2"]
        opts += ["OUTPUT_DIR", str(tmp_path / name), "TEST.NUM_PICTURES", "0", "SEED", "3"]
        config = str(repository / "configs" / "quick" / "semantic.yaml")
        train(setup(Namespace(config_file=config, opts=opts, eval_only=False)), resume=resume)
        return torch.load(tmp_path / name / "model_final.pth", weights_only=False)

    whole = train_to("whole", "SOLVER.EPOCHS.MAX_ITER")  # 2 epochs of 8 images, 4 a step
    assert whole["iteration"] == 3
    assert whole["trainer"]["data"]["position"] == 16
    stopped = train_to("stopped", "SOLVER.MAX_ITER")
    (tmp_path / "stopped" / "last_checkpoint").write_text("model_0000001.pth")
    resumed = train_to("stopped", "SOLVER.MAX_ITER", resume=True)
    for name, tensor in whole["model"].items():
        assert tensor.equal(stopped["model"][name]) and tensor.equal(resumed["model"][name])


def _rank(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    exchanges, first = [], []

    def count(state, bucket):
        exchanges.append(bucket.index())
        return default(state, bucket)

    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook as default

    model = DistributedDataParallel(Model())
    model.register_comm_hook(None, count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # rank 0 has images 0, 2, 4, ..., rank 1 the others: together the first four make the first step
    trainer = accumulating(SimpleTrainer(model, DATA[rank::2].split(1), optimizer), 2)
    trainer._write_metrics = lambda *args: None
    for trainer.iter in range(2):
        trainer.run_step()
        first.append(model.module.layer.weight.grad.clone())
    torch.save(
        {
            "weights": model.module.layer.state_dict(),
            "exchanges": len(exchanges),
            "first": first[0],
        },
        f"{folder}/{rank}.pth",
    )
    torch.distributed.destroy_process_group()

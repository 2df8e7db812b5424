"""Validation losses: the training run does not notice them, and they repeat to the last bit."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import nn

from d2_cityscapes.engine.hooks import FreezeHook
from d2_cityscapes.engine.validation_loss import ValidationLossHook, validation_losses
from d2_cityscapes.modeling.freezing.freeze import freeze_modules


class Model(nn.Module):
    """Batch norm, dropout, random sampling, and a log entry of its own, as detectors have them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))

    def forward(self, batch):
        assert self.training
        images = torch.stack([image["image"] for image in batch])
        features = self.body(images).mean(dim=(2, 3))
        sample = torch.randperm(4)[:2]
        get_event_storage().put_scalar("sampled", float(sample[0]))
        return {
            "loss_cls": self.head(features).square().mean(),
            "loss_box": features[:, sample].mean() + random.random() + np.random.random(),
        }


def make_images(number: int = 5) -> list[list[dict]]:
    generator = torch.Generator().manual_seed(3)
    return [
        [{"image_id": f"town_{i}", "image": torch.randn(1, 8, 8, generator=generator)}]
        for i in range(number)
    ]


class Batches:
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            yield [{"image": torch.randn(1, 8, 8, generator=generator)} for _ in range(2)]


def make_model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model()


def train(model: Model, hooks: list, steps: int = 6):
    """Train from fixed seeds; the trainer, whose state is that of the whole run."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9
    )
    trainer = SimpleTrainer(model, Batches(), optimizer)
    trainer.register_hooks(hooks)
    trainer.train(0, steps)
    return trainer


def scalars(trainer, name: str) -> dict[int, float]:
    return {iteration: value for value, iteration in trainer.storage.history(name).values()}


def test_a_run_is_the_same_with_and_without() -> None:
    plain, watched = make_model(), make_model()
    a = train(plain, [])
    b = train(watched, [ValidationLossHook(2, make_images())])
    state = plain.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in watched.state_dict().items())
    moments = [s["momentum_buffer"] for s in a.optimizer.state_dict()["state"].values()]
    others = [s["momentum_buffer"] for s in b.optimizer.state_dict()["state"].values()]
    assert moments and all(x.equal(y) for x, y in zip(moments, others, strict=True))
    assert scalars(a, "total_loss") == scalars(b, "total_loss")
    assert scalars(a, "sampled") == scalars(b, "sampled")
    assert all(module.training for module in watched.modules())


def test_it_comes_every_period_and_at_the_end() -> None:
    trainer = train(make_model(), [ValidationLossHook(4, make_images())])
    total = scalars(trainer, "val/total_loss")
    assert list(total) == [3, 5]
    parts = [scalars(trainer, f"val/{name}") for name in ("loss_cls", "loss_box")]
    for iteration, value in total.items():
        assert value == pytest.approx(sum(part[iteration] for part in parts))
    assert total[3] != total[5]


def test_the_same_weights_give_the_same_numbers() -> None:
    model, images = make_model().eval(), make_images()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = validation_losses(model, images)
    torch.manual_seed(9)
    random.seed(9)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert validation_losses(model, images[::-1]) == first
    assert torch.get_rng_state().equal(states[0])
    assert random.getstate() == states[1] and (np.random.get_state()[1] == states[2]).all()
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules()), "its mode is given back"
    assert all(p.grad is None for p in model.parameters())


def test_it_is_the_mean_over_images_and_each_counts_once() -> None:
    model, images = make_model(), make_images(3)
    single = [validation_losses(model, [batch]) for batch in images]
    whole = validation_losses(model, images)
    assert whole["loss_cls"] == pytest.approx(sum(s["loss_cls"] for s in single) / 3)
    assert validation_losses(model, [*images, images[0]]) == whole
    with torch.no_grad():
        features = model.body.eval()(images[0][0]["image"][None]).mean(dim=(2, 3))
        expected = model.head[1](features).square().mean()
    assert single[0]["loss_cls"] == pytest.approx(expected.item()), "norms in eval, dropout off"


def test_a_gpu_is_waited_for_once(fake_gpu) -> None:
    """However many images there are; the numbers are those of the CPU."""

    class Losses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 4, 3)

        def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
            found = self.layer(batch[0]["image"][None])
            return {"loss_cls": found.square().mean(), "loss_box": found.abs().mean()}

    torch.manual_seed(0)
    model, images = Losses(), make_images(4)
    expected = validation_losses(model, images)
    model.to("cuda")
    for (image,) in images:
        image["image"] = image["image"].to("cuda")
    with fake_gpu.watch() as seen:
        found = validation_losses(model, images)
    assert seen.total <= 1, seen.table()
    assert found == expected and set(found) == {"loss_cls", "loss_box"}


def test_an_empty_set_has_no_losses() -> None:
    assert validation_losses(make_model(), []) == {}


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = make_model()
    model.body.eval()
    with contextlib.suppress(KeyError):
        validation_losses(model, [[{"image_id": "town"}]])
    assert model.training and not model.body[1].training and model.head[0].training


def test_frozen_norms_stay_frozen() -> None:
    model = make_model()
    freeze_modules(model, ["body"])
    train(model, [FreezeHook(["body"]), ValidationLossHook(1, make_images())])
    assert not model.body[1].training and model.head[0].training


def run_rank(rank: int, folder: str) -> None:
    """Validate two shares of five images that overlap, as a padding sampler makes them."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    images = make_images()
    losses = validation_losses(make_model(), images[:3] if rank == 0 else [*images[3:], images[0]])
    torch.save(losses, f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # neither tears the connection down under the other
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads now and then abort a normal exit of the interpreter


def test_two_ranks_give_the_numbers_of_one(tmp_path: Path) -> None:
    commands = [[sys.executable, __file__, str(rank), tmp_path] for rank in range(2)]
    ranks = [subprocess.Popen(command) for command in commands]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    expected = validation_losses(make_model(), make_images())
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [expected, expected]


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2])

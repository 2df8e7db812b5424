"""On a GPU a step waits for nothing that it has queued, and its losses are none the worse for it.

The GPU is a pretended one: see `fake_cuda`.
"""

from __future__ import annotations

import json
import runpy
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from d2_cityscapes.engine.hooks import SettleHook
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.step.nonfinite import NonFiniteError, Trouble
from d2_cityscapes.engine.step.optimizer import build_optimizer, largest_gradient
from d2_cityscapes.engine.step.training_step import TrainingStep
from d2_cityscapes.engine.trainer import setup, train
from d2_cityscapes.modeling.execution.deferred_scalars import put_scalar_later

runs = runpy.run_path(str(Path(__file__).with_name("step_runs.py")))
sgd, state_of, assert_equal = (runs[n] for n in ("sgd", "state_of", "assert_equal"))

LOSSES = ("loss_a", "loss_b", "total_loss")


class Model(nn.Module):
    """Two losses, norm statistics, and a number for the log, as detectors have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.norm = nn.BatchNorm1d(5)
        self.layer = nn.Linear(5, 3)

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        found = self.layer(self.norm(torch.stack([image["image"] for image in batch]))).float()
        with torch.no_grad():
            put_scalar_later("largest", found.amax())
        return {"loss_a": found.square().mean(), "loss_b": found.abs().mean()}


def batches(device: str, *spoilt: int, count: int = 8) -> list[list[dict]]:
    data = torch.randn(2 * count, 5, generator=torch.Generator().manual_seed(0))
    for number in spoilt:
        data[2 * number] = float("nan")
    images = [{"image": image.to(device), "file_name": f"{n}.png"} for n, image in enumerate(data)]
    return [images[n : n + 2] for n in range(0, 2 * count, 2)]


def step_of(device: str, *spoilt: int, **options) -> TrainingStep:
    model = Model().to(device)
    return TrainingStep(model, batches(device, *spoilt), sgd(model), **options)


def history(storage: EventStorage, name: str) -> list[tuple[float, int]]:
    return storage.history(name).values() if name in storage.histories() else []


def go(step: TrainingStep, storage: EventStorage, iterations) -> None:
    for step.iter in iterations:
        storage.iter = step.iter
        step.run_step()


# --- waits and launches --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "waits"), [("float32", 0), ("bfloat16", 0), ("float16", 1), ("skipping", 1)]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_waits_of_a_step(fake_gpu, precision, waits, accumulate):
    options = {
        "float32": {},
        "bfloat16": {"autocast": torch.bfloat16},
        "float16": {"autocast": torch.float16, "grad_scaler": torch.amp.GradScaler("cuda")},
        "skipping": {"max_skipped_steps": 3},
    }[precision]
    step = step_of("cuda", accumulate_steps=accumulate, **options)
    with EventStorage() as storage:
        go(step, storage, range(2))
        with fake_gpu.watch() as seen:
            go(step, storage, range(2, 3))
        assert seen.total == waits, seen.table()
        assert seen.copied_out <= 4 * (2 * accumulate + 1 + accumulate)
        assert {i for _, i in history(storage, "total_loss")} >= {0, 1}


class Many(nn.Module):
    """89 parameter tensors, as Mask R-CNN has them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList(nn.Parameter(torch.ones(n % 7 + 1)) for n in range(89))


@pytest.mark.parametrize(("kind", "most"), [("norm", 8), ("value", 2), ("full_model", 9)])
def test_launches_of_clipping(fake_gpu, kind, most):
    """By norm, CUDA multiplies each gradient by its own factor: 88 more, all in one operation."""
    counts = []
    for enabled in ("False", "True"):
        model = Many().to("cuda")
        cfg = load_config("", [
            "SOLVER.CLIP_GRADIENTS.ENABLED", enabled, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind,
            "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5",
        ])  # fmt: skip
        optimizer = build_optimizer(cfg, model)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        with fake_gpu.watch() as seen:
            optimizer.step()
        assert seen.total == 0, seen.table()
        counts.append(seen.launches)
    assert 0 < counts[1] - counts[0] <= most


def test_launches_of_the_look_at_gradients(fake_gpu):
    model = Many().to("cuda")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with fake_gpu.watch() as seen:
        largest_gradient(sgd(model))
    assert seen.launches <= 5 and seen.total == 0, seen.table()


# --- what is logged, and when --------------------------------------------------------------------


def test_every_step_is_logged_as_on_the_cpu(fake_gpu):
    """One step later, and the last one when it is settled; numbers and weights are the same."""
    on_cpu, on_gpu = step_of("cpu"), step_of("cuda")
    with EventStorage(5) as expected:
        go(on_cpu, expected, range(5, 9))
    with EventStorage(5) as found:
        go(on_gpu, found, range(5, 9))
        names = (*LOSSES, "largest")
        for name in names:
            assert history(found, name) == history(expected, name)[:-1]
        on_gpu.settle()
        assert found.iter == 8
        for name in names:
            assert history(found, name) == history(expected, name)
        assert [i for _, i in history(found, "data_time")] == [5, 6, 7, 8]
    state = {name: tensor.cpu() for name, tensor in state_of(on_gpu).items()}
    assert_equal(state, state_of(on_cpu))
    assert on_gpu.state_dict().keys() == on_cpu.state_dict().keys()


def test_a_loss_that_is_not_finite_ends_the_training_a_step_later(fake_gpu):
    step = step_of("cuda", 2)
    with EventStorage() as storage:
        with pytest.raises(NonFiniteError) as caught:
            go(step, storage, range(8))
        assert step.iter == 3
        assert str(caught.value).startswith("iteration 2: loss_a, loss_b not finite; images: 4.png")
        assert [i for _, i in history(storage, "total_loss")] == [0, 1]


@pytest.mark.parametrize("ask", ["settle", "state_dict"])
def test_and_nothing_is_made_of_it_before(fake_gpu, ask):
    """Neither a checkpoint nor anything else that comes behind the step."""
    step = step_of("cuda", 2)
    with EventStorage() as storage:
        go(step, storage, range(3))
        with pytest.raises(NonFiniteError, match="iteration 2: loss_a, loss_b"):
            getattr(step, ask)()


def test_predictions_that_it_spoils_do_not_hide_it(fake_gpu):
    """Detectron2's RPN raises for weights that the step before has made NaN."""
    step = step_of("cuda", 1)
    model = step.model

    def look(*_) -> None:
        if step.iter == 2:
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")

    model.register_forward_pre_hook(look)
    with EventStorage() as storage, pytest.raises(NonFiniteError, match="iteration 1: loss_a"):
        go(step, storage, range(8))


def test_several_processes_tell_each_other_when_they_settle(fake_gpu, monkeypatch):
    """The other one, of twice these losses, is pretended too."""
    other: dict[int, Trouble] = {}

    def all_gather(own: list) -> list:
        return [own, [other.get(len(met) + i) for i in range(len(own))]]

    def gather(own: dict) -> list[dict]:
        met.append(own)
        return [own, {name: 2 * value for name, value in own.items()}]

    met: list[dict] = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "all_gather", all_gather)
    monkeypatch.setattr(comm, "gather", gather)
    alone, step = step_of("cpu"), step_of("cuda")
    with EventStorage() as storage:
        go(step, storage, range(3))
        assert met == [] and history(storage, "loss_a") == []
        step.settle()
        logged = list(history(storage, "loss_a"))
        other[3 + 1] = Trouble(("loss_c",), ("of_the_other.png",))
        go(step, storage, range(3, 6))
        with pytest.raises(NonFiniteError, match=r"iteration 4: loss_c .* of_the_other\.png"):
            step.settle()
        assert [i for _, i in history(storage, "loss_a")] == [0, 1, 2, 3]
    monkeypatch.undo()
    with EventStorage() as storage:
        go(alone, storage, range(3))
        for (mean, at), (own, iteration) in zip(logged, history(storage, "loss_a"), strict=True):
            assert at == iteration and mean == pytest.approx(1.5 * own)


def test_steps_are_settled_before_anything_is_made_of_them():
    class Settled(TrainerBase):
        def __init__(self) -> None:
            super().__init__()
            self._trainer, self.settled = self, []

        def run_step(self) -> None: ...

        def settle(self) -> None:
            self.settled.append(self.iter)

    trainer = Settled()
    trainer.register_hooks([SettleHook([4, 0, 6])])
    trainer.train(2, 14)
    assert trainer.settled == [3, 5, 7, 11, 13]


def test_a_training_writes_what_it_writes_on_the_cpu(
    repository, datasets, tiny_opts, tmp_path, fake_gpu
):
    """The log of every step, in lines of 20 as before, and the weights."""
    found = {}
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        opts = [*tiny_opts, "MODEL.DEVICE", device, "OUTPUT_DIR", str(folder), "SEED", "1"]
        opts += ["SOLVER.MAX_ITER", "21", "TEST.NUM_PICTURES", "0", "DATASETS.TEST", "()"]
        opts += ["SOLVER.CHECKPOINT_PERIOD", "50", "SOLVER.IMS_PER_BATCH", "1"]
        config = str(repository / "configs" / "quick" / "semantic.yaml")
        train(setup(Namespace(config_file=config, opts=opts, eval_only=False)), allow_unused=True)
        lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
        found[device] = (
            [{k: v for k, v in line.items() if "loss" in k or k == "iteration"} for line in lines],
            torch.load(folder / "model_final.pth", weights_only=True)["model"],
        )
    assert found["cuda"][0] == found["cpu"][0]
    assert [line["iteration"] for line in found["cpu"][0]] == [19, 20]
    assert_equal(found["cuda"][1], found["cpu"][1])

"""FreezeHook under a real Detectron2 training loop with momentum and weight decay."""

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2")

from detectron2.engine import HookBase, SimpleTrainer
from detectron2.solver.build import get_default_optimizer_params

from d2_cityscapes.engine.hooks import FreezeHook
from d2_cityscapes.modeling.freezing.freeze import FreezeError, freeze_modules


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.neck = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 1)

    def forward(self, batch):
        x = self.neck(self.backbone(batch)).mean(dim=(2, 3))
        return {"loss": (self.head(x) - 1).square().mean()}


class Batches:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self):
        while True:
            yield torch.randn(2, 3, 8, 8, generator=self.generator) + 5


class Evaluation(HookBase):
    """What every evaluation does to the mode of the model."""

    def after_step(self):
        if self.trainer.iter % 5 == 0:
            self.trainer.model.eval()
            self.trainer.model.train()


class Tamper(HookBase):
    def __init__(self, name: str, iteration: int = 1):
        self.name, self.iteration = name, iteration

    def after_step(self):
        if self.trainer.iter == self.iteration:
            state = self.trainer.model.state_dict()
            state[self.name].view(-1)[0] += 1


class Fail(HookBase):
    def after_step(self):
        raise RuntimeError("disk full")


OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1),
    "ADAM": lambda groups: torch.optim.Adam(groups, lr=0.01, weight_decay=0.1),
    "ADAMW": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
}


def train(patterns, hooks, *, steps=50, frozen=True, wrap=False, optimizer="SGD"):
    """Train a model; returns it with its state from before the training."""
    torch.manual_seed(0)
    model = Model()
    if frozen:
        freeze_modules(model, patterns)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = get_default_optimizer_params(model, base_lr=0.01, weight_decay_norm=0.1)
    wrapped = nn.DataParallel(model) if wrap else model.train()
    trainer = SimpleTrainer(wrapped, Batches(), OPTIMIZERS[optimizer](parameters))
    trainer.register_hooks(hooks)
    trainer.train(0, steps)
    return model, before


def moved(model, before) -> set[str]:
    state = model.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, state[name])}


@pytest.mark.parametrize(
    ("optimizer", "wrap"),
    [
        ("SGD", False),
        pytest.param("SGD", True, marks=pytest.mark.no_fake_gpu("DataParallel")),
        ("ADAM", False),
        ("ADAMW", False),
    ],
)
def test_nothing_frozen_moves_in_50_steps(optimizer, wrap):
    hooks = [FreezeHook(["backbone"]), Evaluation()]
    model, before = train(["backbone"], hooks, optimizer=optimizer, wrap=wrap)
    assert moved(model, before) == {name for name in before if not name.startswith("backbone")}


def test_without_the_hook_norm_statistics_move():
    model, before = train(["backbone"], [Evaluation()])
    names = {f"backbone.1.{x}" for x in ("running_mean", "running_var", "num_batches_tracked")}
    assert {name for name in moved(model, before) if name.startswith("backbone")} == names


def test_norm_eval_off_lets_statistics_move_and_no_more():
    hook = FreezeHook(["backbone"], norm_eval=False)
    model, before = train(["backbone"], [hook])
    changed = {name for name in moved(model, before) if name.startswith("backbone")}
    assert "backbone.1.running_mean" in changed
    assert "backbone.0.weight" not in changed


@pytest.mark.parametrize("name", ["neck.0.weight", "neck.1.running_mean", "neck.1.bias"])
def test_tampering_is_found_and_named(name):
    patterns = ["backbone", "neck"]
    with pytest.raises(FreezeError, match=f"changed during training: neck .*{name}") as error:
        train(patterns, [Tamper(name), FreezeHook(patterns)], steps=3)
    assert "backbone" not in str(error.value)


def test_change_in_the_last_step_is_found():
    with pytest.raises(FreezeError, match="backbone"):
        train(["backbone"], [Tamper("backbone.0.bias", 2), FreezeHook(["backbone"])], steps=3)


def test_a_crash_is_not_hidden_behind_a_checksum():
    hooks = [Tamper("backbone.0.bias", 0), Fail(), FreezeHook(["backbone"])]
    with pytest.raises(RuntimeError, match="disk full"):
        train(["backbone"], hooks, steps=3)


def test_refuses_modules_that_are_not_frozen():
    with pytest.raises(FreezeError, match="backbone is not frozen"):
        train(["backbone"], [FreezeHook(["backbone"])], frozen=False)


def test_unknown_pattern():
    with pytest.raises(FreezeError, match="nearest: backbone"):
        train(["backbone"], [FreezeHook(["backbon"])])

"""MODEL.FREEZE.SCHEDULE in the training loop: when what begins to move, and on several ranks."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.solver import build_lr_scheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_cityscapes.config import get_cfg
from d2_cityscapes.engine.distributed import buffers_stay
from d2_cityscapes.engine.hooks import FreezeHook
from d2_cityscapes.engine.step.optimizer import build_optimizer
from d2_cityscapes.modeling.freezing.freeze import FreezeError, freeze_modules

MODULES = ["body", "neck"]
SCHEDULE = [[3, ["neck"]], [5, ["body.1*"]]]  # body.0 never trains
STEPS = 7
OPTIMIZERS = ["SGD", "ADAM", "ADAMW"]


class Model(nn.Module):
    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1), norm(4)))
        self.neck = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1), norm(4))
        self.head = nn.Linear(4, 1)

    def forward(self, batch):
        x = self.neck(self.body(batch)).mean(dim=(2, 3))
        return {"loss": (self.head(x) - 1).square().mean()}


class Batches:
    """Four images a step, of which a rank gets its share."""

    def __init__(self, start: int = 0, share: slice = slice(None)):
        self.start, self.share = start, share

    def __iter__(self):
        step = self.start
        while True:
            generator = torch.Generator().manual_seed(step)
            yield torch.randn(4, 3, 8, 8, generator=generator)[self.share] + 1
            step += 1


class Record(HookBase):
    """Keeps the state of the model before the first step and after every step."""

    def before_train(self):
        self.states = [copy.deepcopy(self.trainer.model.state_dict())]
        self.optimizers = []

    def after_step(self):
        self.states.append(copy.deepcopy(self.trainer.model.state_dict()))
        self.optimizers.append(copy.deepcopy(self.trainer.optimizer.state_dict()))

    def moved(self, step: int) -> set[str]:
        """Names of the tensors that a step changed."""
        before, after = self.states[step], self.states[step + 1]
        return {name for name, tensor in before.items() if not tensor.equal(after[name])}


class Evaluation(HookBase):
    """What every evaluation does to the mode of the model."""

    def after_step(self):
        self.trainer.model.eval()
        self.trainer.model.train()


def make_trainer(
    schedule,
    *hooks,
    modules=MODULES,
    optimizer="SGD",
    norm=nn.BatchNorm2d,
    norm_eval=True,
    start=0,
    wrap=lambda model: model,
    share=slice(None),
    opts=(),
):
    """A trainer built as `Trainer` does it: freeze, optimizer, wrapper, hooks."""
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.OPTIMIZER", optimizer, "SOLVER.BASE_LR", 0.05,
                         "SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.MAX_ITER", STEPS, *opts])  # fmt: skip
    torch.manual_seed(0)
    model = Model(norm)
    if modules:
        freeze_modules(model, modules, schedule, max_iter=STEPS)
        hooks = (FreezeHook(modules, schedule=schedule, norm_eval=norm_eval), *hooks)
    built = build_optimizer(cfg, model)
    trainer = SimpleTrainer(wrap(model), Batches(start, share), built)
    trainer.register_hooks(hooks)
    return trainer


def run(schedule, **settings) -> Record:
    record = Record()
    make_trainer(schedule, record, Evaluation(), **settings).train(0, STEPS)
    return record


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(tensor.equal(b[name]) for name, tensor in a.items())


def tensors_of(name: str) -> set[str]:
    return {key for key in Model().state_dict() if key.startswith(f"{name}.")}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_everything_moves_from_its_iteration_on_and_not_before(optimizer):
    record = run(SCHEDULE, optimizer=optimizer)
    head, neck, late = (tensors_of(name) for name in ("head", "neck", "body.1"))
    for step in range(STEPS):
        expected = head | (neck if step >= 3 else set()) | (late if step >= 5 else set())
        assert record.moved(step) == expected, step


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", ["value", "norm", "full_model"])
def test_before_the_schedule_acts_a_run_is_one_without(optimizer, clip):
    opts = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip]
    opts += ["SOLVER.LR_MULTIPLIERS", [["neck.*", 0.5]]]  # of what is frozen for now
    scheduled = run([[4, ["neck"]]], optimizer=optimizer, opts=opts)
    plain = run([], optimizer=optimizer, opts=opts)
    assert all(map(same, scheduled.states[:5], plain.states[:5]))
    assert not same(scheduled.states[5], plain.states[5])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_unfreezing_at_iteration_0_is_not_freezing(optimizer):
    assert all(
        map(
            same,
            run([[0, ["*"]]], optimizer=optimizer).states,
            run([], modules=[], optimizer=optimizer).states,
        )
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizer_has_one_form_in_every_phase(optimizer):
    record = run(SCHEDULE, optimizer=optimizer)
    groups = [state["param_groups"] for state in record.optimizers]
    assert all(group == groups[0] for group in groups)
    with_state = [len(state["state"]) for state in record.optimizers]
    head, neck, late = 2, 4, 4
    assert with_state == [head] * 3 + [head + neck] * 2 + [head + neck + late] * 2
    indices = [index for group in groups[0] for index in group["params"]]
    assert len(indices) == head + neck + late, "what never trains is left out"


def test_a_schedule_of_learning_rates_knows_nothing_of_it():
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.STEPS", (2, 4), "SOLVER.MAX_ITER", STEPS])

    class Rates(HookBase):
        def before_train(self):
            self.scheduler = build_lr_scheduler(cfg, self.trainer.optimizer)
            self.rates = []

        def after_step(self):
            self.rates.append([group["lr"] for group in self.trainer.optimizer.param_groups])
            self.scheduler.step()

    rates = []
    for schedule in (SCHEDULE, [[0, ["neck", "body.1*"]]]):
        make_trainer(schedule, hook := Rates()).train(0, STEPS)
        rates.append(hook.rates)
    assert rates[0] == rates[1] and len({rate[0] for rate in rates[0]}) > 2


def test_norm_layers_train_again_with_their_module():
    class Modes(HookBase):
        def before_train(self):
            self.modes = []

        def after_step(self):
            model = self.trainer.model
            self.modes.append((model.neck[2].training, model.body[1][1].training))

    make_trainer(SCHEDULE, modes := Modes(), Evaluation()).train(0, STEPS)
    assert modes.modes == [(step >= 3, step >= 5) for step in range(STEPS)]


def test_statistics_move_from_the_start_where_norms_are_not_in_eval():
    record = run(SCHEDULE, norm_eval=False)
    statistics = {f"neck.2.{name}" for name in ("running_mean", "running_var")}
    assert statistics <= record.moved(0)
    assert not record.moved(0) & {"neck.1.weight", "neck.2.weight"}


class Tamper(HookBase):
    def __init__(self, name: str, iteration: int):
        self.name, self.iteration = name, iteration

    def after_step(self):
        if self.trainer.iter == self.iteration:
            self.trainer.model.state_dict()[self.name].view(-1)[0] += 1


def test_what_moved_before_its_iteration_is_found_there():
    trainer = make_trainer(SCHEDULE, Tamper("neck.2.running_mean", 1))
    with pytest.raises(FreezeError, match=r"changed during training: neck .*running_mean"):
        trainer.train(0, STEPS)
    assert trainer.iter == 3


def test_what_may_move_may_move():
    trainer = make_trainer(SCHEDULE, Tamper("neck.1.weight", 3))
    trainer.train(0, STEPS)
    assert trainer.iter == STEPS


def test_what_never_trains_is_guarded_to_the_end():
    trainer = make_trainer(SCHEDULE, Tamper("body.0.weight", 6))
    with pytest.raises(FreezeError, match=r"body .*body\.0\.weight"):
        trainer.train(0, STEPS)


def test_each_phase_is_logged_with_a_table(log):
    run(SCHEDULE)
    tables = [line.removeprefix("INFO ") for line in log.lines if "SCHEDULE" in line]
    assert [table.splitlines()[0] for table in tables] == [
        "Iteration 3: unfrozen by MODEL.FREEZE.SCHEDULE. Still frozen: body",
        "Iteration 5: unfrozen by MODEL.FREEZE.SCHEDULE. Still frozen: body.0",
    ]
    frozen = 3 * 4 * 9 + 4  # body.0
    assert tables[1].splitlines()[-1].split() == ["total", str(frozen), str(28 + 28 + 5)]


def test_an_optimizer_that_lacks_what_is_unfrozen_is_refused():
    trainer = make_trainer(SCHEDULE)
    trainer.optimizer = torch.optim.SGD(trainer.model.head.parameters(), lr=0.1)
    with pytest.raises(FreezeError, match="holds nothing of what iteration 3 unfreezes"):
        trainer.train(0, STEPS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 6])
def test_a_stop_in_any_phase_leaves_no_trace(optimizer, stop):
    whole = run(SCHEDULE, optimizer=optimizer)
    first = make_trainer(SCHEDULE, optimizer=optimizer)
    first.train(0, stop)
    second = make_trainer(SCHEDULE, record := Record(), optimizer=optimizer, start=stop)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.train(stop, STEPS)
    assert all(map(same, record.states, whole.states[stop:]))


@pytest.fixture
def one_rank(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_distributed_model_is_wrapped_again_with_its_settings():
    class Wrappers(HookBase):
        def before_train(self):
            self.seen = []

        def before_step(self):
            reference = weakref.ref(self.trainer.model)
            if reference not in self.seen:
                self.seen.append(reference)
            alive = [model() for model in self.seen if model() is not None]
            assert alive == [self.trainer.model], "the one before is gone, with its buffers"

    def wrap(model):
        return DistributedDataParallel(
            model, gradient_as_bucket_view=True, static_graph=True, **buffers_stay()
        )

    trainer = make_trainer(SCHEDULE, wrappers := Wrappers(), wrap=wrap)
    trainer.train(0, STEPS)
    assert len(wrappers.seen) == 3
    assert trainer.model.gradient_as_bucket_view and trainer.model.static_graph
    assert not trainer.model.broadcast_buffers
    assert same(trainer.model.module.state_dict(), run(SCHEDULE).states[-1])


def run_rank(rank: int, folder: str) -> None:
    """Train on half of every batch; the second time from a checkpoint in a later phase."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    settings = {
        "norm": GroupNorm, "share": slice(rank, None, 2),
        "wrap": lambda model: DistributedDataParallel(model, **buffers_stay()),
    }  # fmt: skip
    whole = make_trainer(SCHEDULE, record := Record(), **settings)
    whole.train(0, STEPS)
    resumed = make_trainer(SCHEDULE, start=4, **settings)
    resumed.model.load_state_dict(record.states[4])
    resumed.optimizer.load_state_dict(record.optimizers[3])
    resumed.train(4, STEPS)
    states = [trainer.model.module.state_dict() for trainer in (whole, resumed)]
    torch.save(states, f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # neither tears the connection down under the other
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads now and then abort a normal exit of the interpreter


class GroupNorm(nn.GroupNorm):
    """A norm of each image by itself, so that halves of a batch give the gradients of the whole."""

    def __init__(self, channels: int):
        super().__init__(2, channels)


def test_two_ranks_train_as_one(tmp_path: Path):
    commands = [[sys.executable, __file__, str(rank), tmp_path] for rank in range(2)]
    ranks = [subprocess.Popen(command) for command in commands]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    (first, resumed), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert same(first, second)
    assert same(first, resumed)
    alone = run(SCHEDULE, norm=GroupNorm).states
    for name, tensor in alone[-1].items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-5)
    moved = {name for name, tensor in alone[0].items() if not first[name].equal(tensor)}
    assert moved == set(alone[0]) - {"body.0.weight", "body.0.bias"}


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2])

"""The training step: stock without options, and each option against a plain reference."""

from __future__ import annotations

import itertools
import os
import runpy
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from d2_cityscapes.engine import hook_order
from d2_cityscapes.engine import trainer as trainer_module
from d2_cityscapes.engine.setup import ConfigError, load_config
from d2_cityscapes.engine.step.nonfinite import NonFiniteError
from d2_cityscapes.engine.step.optimizer import build_optimizer
from d2_cityscapes.engine.step.training_step import TrainingStep, build_training_step
from d2_cityscapes.engine.trainer import Trainer, setup, train

runs = runpy.run_path(str(Path(__file__).with_name("step_runs.py")))
sgd, run, state_of, assert_equal = (runs[n] for n in ("sgd", "run", "state_of", "assert_equal"))

DATA = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """Two losses, each a mean over a batch of images or a tensor of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(5, 3)

    def forward(self, batch) -> dict[str, torch.Tensor]:
        if isinstance(batch, list):
            batch = torch.stack([image["image"] for image in batch])
        found = self.layer(batch).float()
        if batch.isinf().any():
            raise FloatingPointError("as Detectron2's RPN does it")
        return {"loss_a": found.square().mean(), "loss_b": found.abs().mean()}


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The order of what a step does."""
    found: list[str] = []

    def recorded(owner, name: str) -> None:
        original = getattr(owner, name)

        def call(*args, **kwargs):
            found.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for name in ("zero_grad", "step"):
        recorded(torch.optim.SGD, name)
    recorded(torch.Tensor, "backward")
    recorded(Model, "forward")
    recorded(SimpleTrainer, "_write_metrics")
    return found


def test_without_options_it_is_detectron2s_own(calls):
    ours, stock = (
        kind(model, DATA.split(4), sgd(model))
        for kind, model in ((TrainingStep, Model()), (SimpleTrainer, Model()))
    )
    assert run(ours, 5) == run(stock, 5)
    assert_equal(state_of(ours), state_of(stock))
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]
    assert ours.state_dict().keys() == stock.state_dict().keys()


def test_a_model_may_return_one_loss():
    class One(Model):
        def forward(self, batch):
            return sum(super().forward(batch).values())

    ours, stock = (
        kind(model, DATA.split(4), sgd(model))
        for kind, model in ((TrainingStep, One()), (SimpleTrainer, One()))
    )
    assert run(ours, 3) == run(stock, 3)
    assert_equal(state_of(ours), state_of(stock))


def test_small_batches_make_the_step_of_a_large_one():
    large_model, small_model = Model(), Model()
    large = TrainingStep(large_model, DATA.split(8), sgd(large_model))
    small = TrainingStep(small_model, DATA.split(2), sgd(small_model), accumulate_steps=4)
    for a, b in zip(run(large, 3), run(small, 3), strict=True):
        assert a == pytest.approx(b, rel=1e-6) and {"loss_a", "loss_b", "total_loss"} == a.keys()
    torch.testing.assert_close(state_of(small), state_of(large), rtol=1e-6, atol=1e-7)
    for a, b in zip(small_model.parameters(), large_model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-7)


# -- precision


# what autocast computes in, and how far from float32 a step may end, of its length
PRECISIONS = {
    "float32": (None, 0.0),
    "bfloat16": (torch.bfloat16, 0.04),
    "float16": (torch.float16, 0.005),
}


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_combinations_make_the_step_of_float32(precision, optimizer):
    """Precision, clipping, fused update and accumulation, against float32 without the last two."""
    dtype, tolerance = PRECISIONS[precision]
    for clip, fused, steps in itertools.product(
        ["", "value", "norm", "full_model"], [False, True], [1, 2]
    ):
        ends = []
        for ours in (True, False):
            model = Model()
            cfg = load_config("", [
                "SOLVER.OPTIMIZER", optimizer, "SOLVER.BASE_LR", "0.05",
                "SOLVER.CLIP_GRADIENTS.ENABLED", str(bool(clip)),
                "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip or "value",
                "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.1",
                "SOLVER.FUSED", str(fused and ours),
            ])  # fmt: skip
            scaled = ours and dtype is torch.float16
            scaler = torch.amp.GradScaler("cpu", init_scale=1024) if scaled else None
            trainer = TrainingStep(
                model,
                DATA.split(4 // steps if ours else 4),
                build_optimizer(cfg, model),
                accumulate_steps=steps if ours else 1,
                autocast=dtype if ours else None,
                grad_scaler=scaler,
            )
            run(trainer, 3)
            assert scaler is None or scaler.get_scale() == 1024
            ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        start = torch.cat([p.detach().flatten() for p in Model().parameters()])
        moved = (ends[1] - start).norm()
        assert (ends[0] - ends[1]).norm() <= tolerance * moved + 1e-6, (clip, fused, steps)


def test_an_overflow_leaves_the_step_out_and_halves_the_scale():
    model = Model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    options = {"autocast": torch.float16, "grad_scaler": scaler}
    trainer = TrainingStep(model, DATA.split(4), sgd(model, fused=True), **options)
    before = state_of(trainer)
    logged = run(trainer, 1)
    assert scaler.get_scale() == 2.0**19 and logged[0].keys() == {"loss_a", "loss_b", "total_loss"}
    assert_equal(state_of(trainer), before)
    run(trainer, 5)
    assert not model.layer.weight.equal(before["layer.weight"]) and scaler.get_scale() > 1


def test_a_scaler_goes_on_where_it_was():
    def make() -> TrainingStep:
        model = Model()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        return TrainingStep(
            model, DATA.split(4), sgd(model), autocast=torch.float16, grad_scaler=scaler
        )

    first, second, plain = make(), make(), TrainingStep(Model(), DATA.split(4), sgd(Model()))
    run(first, 5)
    second.load_state_dict(first.state_dict())
    assert second.grad_scaler.state_dict() == first.grad_scaler.state_dict()
    second.load_state_dict(plain.state_dict())  # of a run in float32


@pytest.fixture(scope="module")
def detector_losses(repository, datasets_root, tiny_opts):
    """Precision -> losses of one batch, (name, gradient) of what trains, of a small Mask R-CNN."""
    from d2_cityscapes.data.loader import build_train_loader, seed_generators
    from d2_cityscapes.modeling.build import build_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets_root))
        found = {}
        for precision, (dtype, _) in PRECISIONS.items():
            opts = [*tiny_opts, "MODEL.DEVICE", "cpu", "SEED", "1"]
            cfg = load_config(repository / "configs/demo/stage3.yaml", opts)
            torch.manual_seed(0)
            model = build_model(cfg)
            model.train()
            batch = next(iter(build_train_loader(cfg)))
            seed_generators(0)
            with EventStorage(), torch.autocast("cpu", dtype, enabled=dtype is not None):
                losses = model(batch)
            sum(losses.values()).backward()
            trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
            found[precision] = losses, trained
    return found


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_detector_learns_in_half_precision(detector_losses, precision):
    """Losses near those of float32, those of boxes computed in it, and gradients everywhere."""
    expected, _ = detector_losses["float32"]
    losses, gradients = detector_losses[precision]
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.05, abs=0.02), name
    boxes = {"loss_box_giou", "loss_box_reg", "loss_rpn_loc"}
    assert all(losses[name].dtype == torch.float32 for name in boxes)
    lost = [name for name, gradient in gradients.items() if gradient is None]
    assert lost == [] and all(gradient.dtype == torch.float32 for gradient in gradients.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())


# -- whole trainings and several processes


def test_settings_make_the_step():
    def build(*opts: str) -> TrainingStep:
        cfg = load_config("", ["MODEL.DEVICE", "cpu", *opts])
        return build_training_step(cfg, Model(), [], sgd(Model()))

    plain = build()
    assert plain.grad_scaler is None and plain.accumulate_steps == 1
    half = build("SOLVER.AMP.ENABLED", "True", "SOLVER.ACCUMULATE_STEPS", "3")
    assert half.grad_scaler.is_enabled() and half.accumulate_steps == 3
    brain = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")
    assert build(*brain, "SOLVER.MAX_SKIPPED_STEPS", "2").grad_scaler is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ACCUMULATE_STEPS", "0", "ACCUMULATE_STEPS 0: use 1 or more"),
        ("MAX_SKIPPED_STEPS", "-1", "MAX_SKIPPED_STEPS -1: use 0 or more"),
        ("AMP.DTYPE", "half", "AMP.DTYPE 'half': use float16 or bfloat16"),
        ("EMA_DECAY", "1.0", "EMA_DECAY 1.0: use a number from 0"),
    ],
)
def test_bad_settings_are_refused_before_a_model_is_built(
    repository, datasets, tmp_path, key, value, message
):
    opts = [f"SOLVER.{key}", value, "OUTPUT_DIR", str(tmp_path)]
    config = str(repository / "configs/quick/semantic.yaml")
    with pytest.raises(ConfigError, match=message):
        setup(Namespace(config_file=config, opts=opts, eval_only=False))


def test_a_training_counts_steps_and_resumes(
    repository, datasets, tiny_opts, tmp_path, monkeypatch
):
    """Its epochs are of the effective batch, and a stop leaves no trace; fused, too."""
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_, **__: {}))
    monkeypatch.setattr(trainer_module, "_check_results", lambda _: None)
    monkeypatch.setattr(hook_order, "_sign_results", lambda _: None)

    def train_to(name: str, last: str, *, resume: bool = False) -> dict:
        opts = [*tiny_opts, "SOLVER.IMS_PER_BATCH", "2", "SOLVER.ACCUMULATE_STEPS", "2"]
        opts += [last, "2.0" if "EPOCHS" in last else "4", "SOLVER.CHECKPOINT_PERIOD", "2"]
        opts += ["OUTPUT_DIR", str(tmp_path / name), "TEST.NUM_PICTURES", "0", "SEED", "3"]
        opts += ["SOLVER.FUSED", "True"]
        config = str(repository / "configs" / "demo" / "stage1.yaml")
        train(setup(Namespace(config_file=config, opts=opts, eval_only=False)), resume=resume)
        return torch.load(tmp_path / name / "model_final.pth", weights_only=False)

    whole = train_to("whole", "SOLVER.EPOCHS.MAX_ITER")  # 2 epochs of 8 images, 4 a step
    assert whole["iteration"] == 3
    assert whole["trainer"]["data"]["position"] == 16
    stopped = train_to("stopped", "SOLVER.MAX_ITER")
    (tmp_path / "stopped" / "last_checkpoint").write_text("model_0000001.pth")
    resumed = train_to("stopped", "SOLVER.MAX_ITER", resume=True)
    for other in (stopped, resumed):
        assert_equal(whole["model"], other["model"])


def test_two_processes_exchange_gradients_once_a_step(tmp_path: Path):
    """And end with the weights of one process that sees all of it.

    A batch that only one finds spoilt is left out by both, whether it shows in its losses or in its
    predictions, and an error names its images on both.
    """
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pth") for rank in range(2)]
    assert_equal(ranks[0]["weights"], ranks[1]["weights"])
    assert ranks[0]["exchanges"] == 4  # for 8 batches, and none for the predictions
    model = Model()
    # rank 0 has images 0, 2, 4, ..., rank 1 the others: of five steps two are spoilt
    alone = TrainingStep(model, [DATA[:4], DATA[8:12], DATA[16:20]], sgd(model))
    logged = run(alone, 3)
    torch.testing.assert_close(ranks[0]["weights"], model.state_dict(), rtol=1e-6, atol=1e-7)
    assert [ranks[0]["logged"][n] for n in (1, 3)] == [{"skipped_steps": 1}, {"skipped_steps": 2}]
    for own, other in zip(logged, ranks[0]["logged"][::2], strict=True):
        assert own == pytest.approx(other, rel=1e-6)
    for rank in ranks:
        assert rank["error"].startswith("iteration 5: loss_a, loss_b not finite")
        assert "21.png" in rank["error"] and "20.png" not in rank["error"]


def _rank(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    exchanges = []

    def count(state, bucket):
        exchanges.append(bucket.index())
        return allreduce_hook(state, bucket)

    data = [{"image": image, "file_name": f"{n}.png"} for n, image in enumerate(DATA)]
    data[5]["image"] = data[21]["image"] = torch.full((5,), float("nan"))
    data[13]["image"] = torch.full((5,), float("inf"))
    batches = [[image] for image in data[rank::2]]
    model = DistributedDataParallel(Model())
    model.register_comm_hook(None, count)
    options = {"accumulate_steps": 2, "max_skipped_steps": 1}
    trainer = TrainingStep(model, batches, sgd(model), **options)
    logged = run(trainer, 5)
    weights = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    done = len(exchanges)
    strict = TrainingStep(model, batches[10:], sgd(model), accumulate_steps=2)
    try:
        run(strict, 1, start=5)
    except NonFiniteError as error:
        message = str(error)
    found = {"weights": weights, "exchanges": done, "logged": logged, "error": message}
    torch.save(found, f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()

"""A training on two processes is that of one, and lengths follow the number of processes."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.engine.hooks import CallbackHook, EvalHook
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_cityscapes.config import get_cfg
from d2_cityscapes.engine import launch as launch_module
from d2_cityscapes.engine.distributed import (
    check_step_size,
    distribute,
    images_per_step,
    launch,
    scale_to_world,
    wrap_again,
)
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.trainer import Trainer, setup
from d2_cityscapes.errors import run

REPOSITORY = Path(__file__).resolve().parents[2]

# A detector whose losses are means over as many things in every image, so that the mean over ranks
# is that over the batch, and that chooses nothing by a rank or by a score: all of its 120 anchors
# train in the RPN and, as proposals, in the box head. Norms do not mix images. There are no masks,
# whose loss is a mean over the foreground of a rank. The deep part is frozen, as what rounding
# changes in it grows a hundredfold in 20 steps.
DETECTOR = [
    "MODEL.FREEZE.MODULES", "['backbone.bottom_up']",
    "INPUT.RANDOM_FLIP", "horizontal", "MODEL.MASK_ON", "False", "MODEL.RESNETS.NORM", "GN",
    "MODEL.RPN.IN_FEATURES", "['p4', 'p5']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32]]",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "120", "MODEL.RPN.POSITIVE_FRACTION", "1.0",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "120", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "120",
    "MODEL.RPN.NMS_THRESH", "1.0", "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "120", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0",
    "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT", "0.0",
    "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.002", "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.MAX_ITER", "20", "SOLVER.CHECKPOINT_PERIOD", "10", "TEST.EXPECTED_RESULTS", "[]",
]  # fmt: skip
UNFROZEN = [*DETECTOR, "MODEL.FREEZE.MODULES", "[]", "SOLVER.MAX_ITER", "3"]
ACCUMULATED = [*UNFROZEN, "SOLVER.ACCUMULATE_STEPS", "2"]
WITH_MASKS = [*UNFROZEN, "MODEL.MASK_ON", "True"]


def losses_of(folder: Path, opts: list[str], *, resume: bool = False) -> list[float]:
    """Train without evaluations: the total loss of each step, on the first rank; else nothing."""
    args = argparse.Namespace(
        config_file=str(REPOSITORY / "configs/quick/instance.yaml"),
        opts=[*opts, "OUTPUT_DIR", str(folder)],
        eval_only=False,
    )
    trainer = Trainer(setup(args))
    trainer.resume_or_load(resume=resume)
    trainer._hooks = [h for h in trainer._hooks if not isinstance(h, EvalHook | CallbackHook)]
    TrainerBase.train(trainer, trainer.start_iter, trainer.max_iter)
    if not comm.is_main_process():
        return []
    return [loss for loss, _ in trainer.storage.history("total_loss").values()]


def halved(run: Path, copy: Path) -> Path:
    """A copy of a run that was stopped after ten steps."""
    shutil.copytree(run, copy)
    (copy / "last_checkpoint").write_text("model_0000009.pth")
    return copy


# --- what runs in two processes -------------------------------------------------------------------


def train_as_rank(args: argparse.Namespace) -> None:
    folder, rank = args.folder, comm.get_rank()
    assert (comm.get_local_rank(), comm.get_local_size()) == (rank, 2)
    no_objects = ["INPUT.MIN_INSTANCE_AREA", "100000"] if rank == 1 else []
    losses = {
        "whole": losses_of(folder / "two", DETECTOR),
        "resumed": losses_of(folder / "one_then_two", DETECTOR, resume=True),
        "accumulated": losses_of(folder / "accumulated", ACCUMULATED),
        "uneven": losses_of(folder / "uneven", [*WITH_MASKS, *no_objects]),
    }
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(losses))


def fail_on_both(args: argparse.Namespace) -> None:
    raise ConfigError("SOLVER.SOMETHING: found by everyone")


def fail_on_one(args: argparse.Namespace) -> None:
    if comm.get_rank() == 1:
        raise ConfigError("SOLVER.SOMETHING: found by one")
    comm.synchronize()


SCENARIOS = (train_as_rank, fail_on_both, fail_on_one)


def run_scenarios(folder: Path) -> None:
    """Run each in two ranks; from a process that has imported everything and computed nothing."""
    fork = multiprocessing.get_context("fork")
    codes = {}
    for main in SCENARIOS:
        # of torchrun's agent
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ranks = [
            fork.Process(target=as_rank, args=(rank, main, store.port, folder)) for rank in range(2)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        codes[main.__name__] = [rank.exitcode for rank in ranks]
    (folder / "codes.json").write_text(json.dumps(codes))


def as_rank(rank: int, main: Callable, port: int, folder: Path) -> None:
    """As torchrun starts a process; what it says on stderr goes to a file."""
    variables = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0,
    }  # fmt: skip
    os.environ |= {key: str(value) for key, value in variables.items()}
    with (folder / f"{main.__name__}{rank}.txt").open("w") as said:
        os.dup2(said.fileno(), sys.stderr.fileno())
    args = command_line()
    args.folder = folder
    run(lambda: launch(main, args))


def command_line(**changes) -> argparse.Namespace:
    usual = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    return argparse.Namespace(config_file="", opts=[], **{**usual, **changes})


# --- two processes and one -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(datasets_root, tmp_path_factory):
    """The folder in which `run_scenarios` left everything."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets_root))
        one = {"whole": losses_of(folder / "one", DETECTOR)}
        halved(folder / "one", folder / "one_then_two")
        batch_of_4 = ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.ACCUMULATE_STEPS", "1"]
        one["accumulated"] = losses_of(folder / "batch", [*ACCUMULATED, *batch_of_4])
        subprocess.run([sys.executable, __file__, "scenarios", folder], check=True, timeout=280)
        halved(folder / "two", folder / "two_then_one")
        one["resumed"] = losses_of(folder / "two_then_one", DETECTOR, resume=True)
    (folder / "losses_of_one.json").write_text(json.dumps(one))
    return folder


@pytest.fixture
def outcome(two):
    """Name of a scenario -> (exit code, what it said on stderr) of both ranks."""
    codes = json.loads((two / "codes.json").read_text())

    def of(name: str) -> list[tuple[int, str]]:
        return [
            (code, (two / f"{name}{rank}.txt").read_text()) for rank, code in enumerate(codes[name])
        ]

    return of


@pytest.fixture
def losses(two, outcome):
    """Losses of one process, and of two, by the name of the run."""
    for code, said in outcome("train_as_rank"):
        assert code == 0, said
    names = ("losses_of_one.json", "losses.json")
    return tuple(json.loads((two / name).read_text()) for name in names)


def test_two_processes_have_the_losses_of_one(losses):
    one, two = (runs["whole"] for runs in losses)
    assert len(one) == 20 and one[-1] < one[0] / 1.5
    assert two == pytest.approx(one, rel=0, abs=1e-5)


def test_a_run_goes_on_with_another_number_of_processes(two, losses):
    of_one, of_two = losses
    rest = of_one["whole"][10:]
    assert of_two["resumed"] == pytest.approx(rest, rel=0, abs=1e-5)
    assert of_one["resumed"] == pytest.approx(rest, rel=0, abs=1e-5)
    ends = [
        torch.load(two / run / "model_final.pth", weights_only=True)
        for run in ("one", "two", "one_then_two", "two_then_one")
    ]
    for end in ends:
        assert end["trainer"]["data"] == {"seed": 1, "position": 40}
        for name, tensor in ends[0]["model"].items():
            torch.testing.assert_close(end["model"][name], tensor, rtol=0, atol=1e-5)


def test_accumulated_batches_of_two_processes_are_one_batch(losses):
    one, two = (runs["accumulated"] for runs in losses)
    assert len(one) == 3
    assert two == pytest.approx(one, rel=0, abs=1e-5)


def test_a_rank_without_objects_holds_nobody_up(losses):
    assert len(losses[1]["uneven"]) == 3


def test_data_parallel_models_warn_of_nothing(outcome):
    assert all("broadcast_buffers" not in said for _, said in outcome("train_as_rank"))


# --- mistakes ------------------------------------------------------------------------------------


def test_a_mistake_of_all_is_one_line(outcome):
    ranks = outcome("fail_on_both")
    assert [code for code, _ in ranks] == [1, 1]
    said = [line for _, text in ranks for line in text.splitlines() if "rror" in line]
    assert said == ["error: SOLVER.SOMETHING: found by everyone"]


def test_a_mistake_of_one_ends_the_other_in_silence(outcome):
    (zero, silent), (one, said) = outcome("fail_on_one")
    assert (zero, one) == (1, 1)
    assert "rror" not in silent
    assert [line for line in said.splitlines() if "rror" in line] == [
        "error: SOLVER.SOMETHING: found by one"
    ]


@pytest.mark.slow
def test_a_mistake_in_processes_of_num_gpus_is_one_line():
    command = [sys.executable, __file__, "num_gpus"]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert found.returncode == 1
    said = [line for line in found.stderr.splitlines() if "rror" in line]
    assert said == ["error: SOLVER.SOMETHING: found by everyone"]


def test_one_process_needs_no_group(monkeypatch):
    def main(args):
        assert not torch.distributed.is_initialized()
        calls.append(args)

    calls: list[argparse.Namespace] = []
    launch(main, alone := command_line())
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    launch(main, alone)
    assert calls == [alone, alone]


@pytest.mark.parametrize(
    ("changes", "under_torchrun", "message"),
    [
        ({"num_gpus": 2}, True, "torchrun starts the processes: leave out --num-gpus"),
        ({"num_gpus": 99}, False, "--num-gpus 99: this machine has"),
        ({"num_machines": 2}, False, "--dist-url auto: give tcp://HOST:PORT"),
        ({"num_machines": 2, "dist_url": "file:///x"}, False, "give tcp://HOST:PORT"),
    ],
)
def test_command_lines_that_cannot_be(monkeypatch, changes, under_torchrun, message):
    if under_torchrun:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.setenv(name, "2")
    with pytest.raises(ConfigError, match=message):
        launch(lambda _: pytest.fail("ran"), command_line(**changes))


# --- the data-parallel model ---------------------------------------------------------------------


@pytest.fixture
def one_of_two(tmp_path, monkeypatch):
    """A process group of this process alone that says it has two."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    yield
    torch.distributed.destroy_process_group()


def cpu_cfg(*opts):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


def test_one_process_trains_the_model_itself():
    model = nn.Linear(1, 1)
    assert distribute(cpu_cfg(), model) is model


@pytest.mark.usefixtures("one_of_two")
@pytest.mark.parametrize(
    ("opts", "static"),
    [
        ([], True),
        (["MODEL.FREEZE.MODULES", ["backbone"]], True),
        (["MODEL.BACKBONE.ACTIVATION_CHECKPOINTING", True], True),
        (["MODEL.FREEZE.SCHEDULE", [[5, ["*"]]]], False),
        (["SOLVER.ACCUMULATE_STEPS", 2], False),
        (["MODEL.COMPILE", True], False),
    ],
)
def test_settings_of_the_wrapper(opts, static):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = distribute(cpu_cfg(*opts), nn.Linear(1, 1))
        again = wrap_again(model)
    for wrapper in (model, again):
        assert isinstance(wrapper, DistributedDataParallel)
        assert wrapper.static_graph == static
        assert wrapper.gradient_as_bucket_view and not wrapper.broadcast_buffers
        assert not wrapper.find_unused_parameters
    assert again.module is model.module


@pytest.mark.usefixtures("one_of_two")
def test_a_stock_wrapper_stays_one():
    stock = DistributedDataParallel(nn.Linear(1, 1))
    again = wrap_again(stock)
    for name in ("broadcast_buffers", "gradient_as_bucket_view", "static_graph", "device_ids"):
        assert getattr(again, name) == getattr(stock, name)


@pytest.mark.usefixtures("one_of_two")
def test_norms_that_need_gpus_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
    with pytest.raises(ConfigError, match="on the CPU use naiveSyncBN"):
        distribute(cpu_cfg(), model)


# --- another number of processes than the config was made for ------------------------------------


def reference_cfg(*opts):
    """Made for 4 processes of 2 images."""
    cfg = get_cfg()
    cfg.merge_from_list([
        "SOLVER.REFERENCE_WORLD_SIZE", 4, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.BASE_LR", 0.02,
        "SOLVER.MAX_ITER", 1000, "SOLVER.STEPS", (600, 900), "SOLVER.WARMUP_ITERS", 100,
        "SOLVER.CHECKPOINT_PERIOD", 50, "TEST.EVAL_PERIOD", 200, "SOLVER.COSINE_ITERS", 1500,
        "SOLVER.BASE_LR_END", 0.002, "SOLVER.PLATEAU.MIN_LR", 0.001, "SOLVER.EMA_DECAY", 0.99,
        "TEST.VAL_LOSS_PERIOD", 40, "MODEL.FREEZE.SCHEDULE", [[500, ["a"]], [800, ["b", "c"]]],
        *opts,
    ])  # fmt: skip
    return cfg


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_what_detectron2_scales_is_scaled_alike(world_size):
    cfg = reference_cfg()
    stock, ours = (
        DefaultTrainer.auto_scale_workers(cfg, world_size),
        scale_to_world(cfg, world_size),
    )
    keys = ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS", "CHECKPOINT_PERIOD")
    for key in (*keys, "REFERENCE_WORLD_SIZE"):
        assert ours.SOLVER[key] == stock.SOLVER[key]
    assert ours.TEST.EVAL_PERIOD == stock.TEST.EVAL_PERIOD


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_images_stay_and_rates_follow_the_batch(world_size):
    cfg, scaled = reference_cfg(), scale_to_world(reference_cfg(), world_size)

    def images(c) -> list[int]:
        starts = [start for start, _ in c.MODEL.FREEZE.SCHEDULE]
        lengths = [c.SOLVER.COSINE_ITERS, c.SOLVER.MAX_ITER, c.TEST.VAL_LOSS_PERIOD, *starts]
        return [length * images_per_step(c) for length in lengths]

    def rates_of_an_image(c) -> list[float]:
        rates = (c.SOLVER.BASE_LR, c.SOLVER.BASE_LR_END, c.SOLVER.PLATEAU.MIN_LR)
        return [rate / images_per_step(c) for rate in rates]

    assert images(scaled) == images(cfg)
    assert rates_of_an_image(scaled) == pytest.approx(rates_of_an_image(cfg))
    # after as many images as much is left of an old average
    left = [c.SOLVER.EMA_DECAY ** (1600 / images_per_step(c)) for c in (cfg, scaled)]
    assert left[0] == pytest.approx(left[1])
    assert 2 * world_size == scaled.SOLVER.IMS_PER_BATCH
    assert [names for _, names in scaled.MODEL.FREEZE.SCHEDULE] == [["a"], ["b", "c"]]


def test_nothing_is_scaled_without_a_reference_or_at_it():
    cfg = reference_cfg()
    assert scale_to_world(cfg, 4) is cfg
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    assert scale_to_world(cfg, 7) is cfg


def test_a_scaled_config_is_another_as_frozen_as_the_first():
    cfg = reference_cfg()
    before = cfg.dump()
    cfg.freeze()
    scaled = scale_to_world(cfg, 8)
    assert cfg.dump() == before and scaled.is_frozen()
    assert scale_to_world(scaled, 8) is scaled


def test_a_short_period_does_not_become_never():
    opts = ["TEST.EVAL_PERIOD", 1, "TEST.VAL_LOSS_PERIOD", 0, "SOLVER.CHECKPOINT_PERIOD", 2]
    scaled = scale_to_world(reference_cfg(*opts), 32)
    assert (scaled.TEST.EVAL_PERIOD, scaled.TEST.VAL_LOSS_PERIOD) == (1, 0)
    assert scaled.SOLVER.CHECKPOINT_PERIOD == 1


@pytest.mark.parametrize("reference", [3, -1])
def test_a_reference_that_cannot_share_the_batch_is_refused(reference):
    with pytest.raises(ConfigError, match=f"REFERENCE_WORLD_SIZE {reference}: use a divisor of"):
        scale_to_world(reference_cfg("SOLVER.REFERENCE_WORLD_SIZE", reference), 2)


def test_scaled_iterations_are_not_resumed_with_others():
    cfg = scale_to_world(reference_cfg(), 8)
    check_step_size(16, cfg, "model_0000009.pth")
    check_step_size(None, cfg, "model_0000009.pth")
    with pytest.raises(ConfigError, match=r"model_0000009\.pth counts steps of 8 images"):
        check_step_size(8, cfg, "model_0000009.pth")
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    check_step_size(8, cfg, "model_0000009.pth")


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_other_accelerators_train_in_one_process(monkeypatch, device):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = device
    with pytest.raises(ConfigError, match=f"MODEL.DEVICE {device}: several processes train on"):
        distribute(cfg, nn.Linear(1, 1))


if __name__ == "__main__":
    if sys.argv[1] == "scenarios":
        run_scenarios(Path(sys.argv[2]))
    else:
        launch_module.check_gpus = lambda _: None  # two processes without a GPU
        run(lambda: launch(fail_on_both, command_line(num_gpus=2)))

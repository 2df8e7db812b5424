"""What a training would need: counted on layers by hand, and on small models of every kind."""

from __future__ import annotations

import os
from argparse import Namespace

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.utils.checkpoint import checkpoint

from d2_cityscapes.engine.dry_run import DryRun, dry_run, largest_that_fits
from d2_cityscapes.engine.out_of_memory import GpuMemoryError
from d2_cityscapes.engine.proposed_objects import objects_proposed
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.step.activations import saved_activations
from d2_cityscapes.engine.step.training_step import TrainingStep
from d2_cityscapes.engine.trainer import checked_config
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.freezing.freeze import FreezeReport

# --- saved activations ---


class Two(nn.Module):
    """Two linear layers with a ReLU in between: (N, 8) -> (N, 4) -> (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def saved_by(model: nn.Module, x: torch.Tensor) -> int:
    with saved_activations(model) as saved:
        model(x).sum().backward()
    return saved()


def test_what_a_layer_needs_again_is_counted_once():
    """Its input, and the output of the ReLU, which the second layer needs too; no weights."""
    model, x = Two(), torch.randn(3, 8)
    assert saved_by(model, x) == 4 * (3 * 8 + 3 * 4)


def test_gradients_are_those_without_counting():
    model, x = Two(), torch.randn(3, 8)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    saved_by(model, x)
    assert all(p.grad.equal(other) for p, other in zip(model.parameters(), expected, strict=True))


def test_frozen_layers_save_nothing():
    model, x = Two(), torch.randn(3, 8)
    model.first.requires_grad_(False)
    assert saved_by(model, x) == 4 * 3 * 4
    model.requires_grad_(False)
    with saved_activations(model) as saved:
        model(x)
    assert saved() == 0


def test_a_view_holds_its_whole_storage():
    whole = torch.randn(10, 8)
    assert saved_by(Two(), whole[:3]) == 4 * (10 * 8 + 3 * 4)


def test_the_call_that_keeps_most_counts():
    model = Two()
    with saved_activations(model) as saved:
        model(torch.randn(5, 8)).sum().backward()
        model(torch.randn(2, 8)).sum().backward()
    assert saved() == 4 * (5 * 8 + 5 * 4)


def test_nothing_is_counted_after_the_end():
    model = Two()
    with saved_activations(model) as saved:
        pass
    model(torch.randn(5, 8)).sum().backward()
    assert saved() == 0


def test_a_checkpointed_layer_keeps_its_input_only():
    class Checkpointed(Two):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    assert saved_by(Checkpointed(), torch.randn(3, 8, requires_grad=True)) == 4 * 3 * 8


# --- the search for the largest batch ---


@pytest.mark.parametrize("start", [1, 3, 4, 64])
@pytest.mark.parametrize("largest", [0, 1, 2, 5, 6, 31, 32, 63, 64])
def test_the_largest_that_fits_is_found(start, largest):
    tried = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= largest

    assert largest_that_fits(fits, start, 64) == largest
    assert len(tried) == len(set(tried)) <= 13 and max(tried) <= 64


# --- proposals ---


def test_objects_replace_the_last_proposals(config):
    cfg = config("instance")  # 32 RoIs, half of them foreground
    image_size = (64, 128)

    def proposals(n: int) -> Instances:
        boxes = Boxes(torch.zeros(n, 4))
        logits = torch.arange(float(n), 0, -1)
        return Instances(image_size, proposal_boxes=boxes, objectness_logits=logits)

    objects = torch.tensor([[1.0, 2, 30, 40], [5, 6, 70, 60]])
    truths = [Instances(image_size, gt_boxes=Boxes(boxes)) for boxes in (objects, objects[:0])]
    rpn, losses = nn.Identity(), {"loss_rpn_cls": torch.ones(())}
    output = [proposals(50), proposals(7)], losses
    (first, second), kept = objects_proposed(cfg)(rpn, (None, None, truths), output)
    assert kept is losses and len(second) == 7
    assert len(first) == 50 and first.objectness_logits[:34].equal(torch.arange(50.0, 16, -1))
    assert first.proposal_boxes.tensor[34:].equal(objects.repeat(8, 1))
    few = objects_proposed(cfg)(rpn, (None, None, truths[:1]), ([proposals(3)], losses))[0][0]
    assert len(few) == 16
    assert objects_proposed(cfg)(rpn.eval(), (None, None, None), output) is output


# --- whole runs ---


@pytest.fixture
def config(repository, datasets, tiny_opts, tmp_path):
    """(name of a quick config, overrides) -> config."""

    def make(name: str, *opts: str):
        file = str(repository / "configs" / "quick" / f"{name}.yaml")
        opts = [*tiny_opts, "OUTPUT_DIR", str(tmp_path / "out"), *opts]
        return checked_config(Namespace(config_file=file, opts=opts, eval_only=False))

    return make


@pytest.mark.parametrize("name", ["instance", "semantic", "panoptic", "deeplab"])
def test_every_kind_of_model(name, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = dry_run(config(name))
    trains = found.report.trainable_parameters
    adam = name != "deeplab"  # which has SGD
    assert found.sizes["gradients"] == 4 * trains
    states = found.sizes["optimizer state"]
    assert 0 <= states - (2 if adam else 1) * 4 * trains < 4000  # and the numbers of steps
    assert found.sizes["saved activations of a batch"] > 4 * 2 * 64 * 32 * 64
    assert found.image_size == ((32, 64) if name == "deeplab" else (64, 128))
    assert (found.batch, found.images, found.accumulate_steps) == (2, 2, 1)
    assert os.listdir(tmp_path) == []  # nothing is left behind
    if not torch.cuda.is_available():
        assert found.peak is None and "estimate for a GPU" in found.table()


def test_the_same_numbers_every_time(config):
    assert dry_run(config("instance")) == dry_run(config("instance"))


def test_what_is_frozen_saves_nothing_and_has_no_gradients(config):
    whole = dry_run(config("semantic"))
    frozen = dry_run(config("semantic", "MODEL.FREEZE.MODULES", "['backbone']"))
    assert frozen.report.frozen_parameters > 0
    assert frozen.sizes["gradients"] == 4 * frozen.report.trainable_parameters
    assert frozen.sizes["parameters"] == whole.sizes["parameters"]
    activations = "saved activations of a batch"
    assert frozen.sizes[activations] < whole.sizes[activations] / 2
    share = f"{100 * frozen.report.trainable_parameters / frozen.sizes['parameters'] * 4:.1f} %"
    assert share in frozen.table()


def test_what_will_be_unfrozen_counts_as_training(config):
    schedule = "[[1, ['backbone.fpn_*']], [2, ['backbone']]]"
    freeze = ["MODEL.FREEZE.MODULES", "['backbone']", "MODEL.FREEZE.SCHEDULE", schedule]
    assert dry_run(config("semantic", *freeze)).sizes == dry_run(config("semantic")).sizes


def test_the_largest_training_size_is_measured(config):
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(32, 96, 64)", "INPUT.MAX_SIZE_TRAIN", "192"]
    assert dry_run(config("semantic", *sizes)).image_size == (96, 192)


def test_a_step_of_several_batches_keeps_one_at_a_time(config):
    one, three = (dry_run(config("semantic", "SOLVER.ACCUMULATE_STEPS", n)) for n in "13")
    assert three.sizes == one.sizes and three.accumulate_steps == 3
    assert "3 x 2 images: an effective batch of 6" in three.table()


def test_mixed_precision_saves_less_of_each_image(config):
    """Beside its copies of the weights, which do not grow with the images."""
    large = ["INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MAX_SIZE_TRAIN", "256"]
    amp = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]

    def growth(*opts: str) -> int:
        runs = dry_run(config("semantic", *opts)), dry_run(config("semantic", *large, *opts))
        small, great = (run.sizes["saved activations of a batch"] for run in runs)
        return great - small

    assert growth(*amp) < 0.8 * growth()


def test_the_most_crowded_images_are_measured(config):
    cfg = config("instance")
    dicts = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    objects = sorted(sum(not a["iscrowd"] for a in d["annotations"]) for d in dicts)
    found = dry_run(cfg)
    assert found.objects == objects[-1] > objects[0]
    assert f"those with most objects, up to {objects[-1]}" in found.table()
    assert dry_run(config("semantic")).objects == 0


def test_more_images_than_there_are(config):
    assert dry_run(config("semantic", "SOLVER.IMS_PER_BATCH", "10")).images == 10


def test_the_largest_batch_on_a_pretended_gpu(fake_gpu, config, monkeypatch):
    """Four images fit, and a fifth one does not, which PyTorch or cuBLAS may be the one to say."""
    cfg = config("semantic", "MODEL.DEVICE", "cuda")
    run_step = TrainingStep.run_step

    def limited(step) -> None:
        images = len(next(step._data_loader_iter))
        if images > 6:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        if images > 4:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        run_step(step)

    monkeypatch.setattr(TrainingStep, "run_step", limited)
    found = dry_run(cfg)
    assert (found.largest_batch, found.images) == (4, 2)
    assert found.peak[0] > sum(found.sizes.values()) / 2


def test_not_even_one_image_fits(fake_gpu, config, monkeypatch):
    def full(step) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingStep, "run_step", full)
    with pytest.raises(GpuMemoryError, match="one image does not fit cuda"):
        dry_run(config("semantic", "MODEL.DEVICE", "cuda"))


def test_other_errors_are_no_lack_of_memory(fake_gpu, config, monkeypatch):
    def broken(step) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(TrainingStep, "run_step", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        dry_run(config("semantic", "MODEL.DEVICE", "cuda"))


def test_the_average_of_the_weights_takes_its_place(config):
    sizes = dry_run(config("semantic", "SOLVER.EMA_DECAY", "0.9")).sizes
    assert sizes["average of the weights"] == sizes["gradients"]


def test_one_of_several_processes(config):
    found = dry_run(config("semantic", "SOLVER.IMS_PER_BATCH", "8"), processes=4)
    assert found.batch == 2
    assert "1 x 2 images on each of 4 processes: an effective batch of 8" in found.table()
    with pytest.raises(ConfigError, match="IMS_PER_BATCH 8: not a multiple of the 3 processes"):
        dry_run(config("semantic", "SOLVER.IMS_PER_BATCH", "8"), processes=3)


def test_weights_of_a_file_are_tried(config, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"no weights")
    with pytest.raises(D2CityscapesError, match=r"weights\.pth: cannot be read as weights"):
        dry_run(config("semantic", "MODEL.WEIGHTS", str(path)))


def test_the_table_of_a_gpu():
    report = FreezeReport((), (("backbone.fpn", 100, 300),))
    run = DryRun(
        report=report,
        batch=8,
        images=5,
        image_size=(1024, 2048),
        precision="bfloat16",
        accumulate_steps=1,
        processes=2,
        sizes={"parameters": 1600, "saved activations of a batch": 3 * 2**20},
        peak=(5 * 2**20, 6 * 2**20),
        largest_batch=5,
    )
    lines = [" ".join(line.split()) for line in run.table().splitlines()]
    for line in (
        "backbone.fpn 100 300",
        "75.0 % of the parameters train",
        "measured with a batch of 5 images of 1024 x 2048 px, in bfloat16",
        "a step is 1 x 8 images on each of 2 processes: an effective batch of 16",
        "saved activations of a batch 3,145,728 3.0",
        "peak of a step 5,242,880 5.0",
        "reserved for it 6,291,456 6.0",
        "SOLVER.IMS_PER_BATCH 16 does not fit",
        "largest SOLVER.IMS_PER_BATCH that fits: 10",
    ):
        assert line in lines
    assert not any("estimate" in line for line in lines)

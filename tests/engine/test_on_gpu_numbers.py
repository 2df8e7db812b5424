"""What a GPU computes, against the CPU: on a real one where there is one, else on the pretended.

Nothing here depends on draws or on the order of equal scores: all anchors are proposals, and all
anchors and proposals are sampled.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tiny_trainings
import torch
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from d2_cityscapes.data.loader import build_train_loader
from d2_cityscapes.engine.step.prefetch import Prefetcher
from d2_cityscapes.engine.trainer import Trainer

ALL_PROPOSALS = [
    "MODEL.RPN.IN_FEATURES", "['p4', 'p5']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32]]",
    "MODEL.RPN.NMS_THRESH", "1.0", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "120",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "120", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "120",
    "MODEL.RPN.POSITIVE_FRACTION", "1.0", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "500",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0",
]  # fmt: skip
FAMILIES = {"stage0": [], "stage3": ALL_PROPOSALS, "stage4": ALL_PROPOSALS}


REAL = pytest.param("real", marks=pytest.mark.gpu)


@pytest.fixture(params=["pretended", REAL])
def gpu(request, datasets) -> Iterator[None]:
    """A GPU; with TF32 off, float32 is the CPU's but for the order of sums."""
    if request.param == "pretended":
        request.getfixturevalue("fake_gpu")
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.fixture
def cfg_of(tmp_path):
    """(family, device, further keys) -> a config."""

    def make(family: str, device: str, *opts: str):
        file, own = tiny_trainings.settings(family)
        return tiny_trainings.config(file, [*own, *FAMILIES[family], *opts], device, tmp_path)

    return make


def losses_and_gradients(cfg, batch, *, dtype: torch.dtype | None = None):
    """The losses of a batch by name, and the norm of the gradient of each parameter."""
    seed_all_rng(1)
    model = Trainer.build_model(cfg)
    model.load_state_dict(_weights(model), strict=False)
    model.train()
    device = torch.device(cfg.MODEL.DEVICE).type
    with EventStorage(), torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def _weights(model) -> dict[str, torch.Tensor]:
    """The same on every device, where Detectron2 draws them on the device."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        for name, value in model.named_parameters()
        if value.dim() > 1
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients(gpu, family, cfg_of):
    batch = next(iter(build_train_loader(cfg_of(family, "cpu"))))
    losses, gradients = losses_and_gradients(cfg_of(family, "cpu"), batch)
    on_gpu = losses_and_gradients(cfg_of(family, "cuda"), batch)
    assert on_gpu[0] == pytest.approx(losses, rel=1e-4, abs=1e-6)
    largest = max(gradients.values())
    assert on_gpu[1] == pytest.approx(gradients, rel=1e-2, abs=1e-4 * largest)


def test_a_step_in_bfloat16(gpu, cfg_of):
    batch = next(iter(build_train_loader(cfg_of("stage3", "cpu"))))
    expected, _ = losses_and_gradients(cfg_of("stage3", "cuda"), batch)
    losses, gradients = losses_and_gradients(cfg_of("stage3", "cuda"), batch, dtype=torch.bfloat16)
    assert losses == pytest.approx(expected, rel=0.05, abs=0.01)
    assert all(0 <= norm < float("inf") for norm in gradients.values())


def test_mask_targets(gpu, cfg_of):
    cfg = cfg_of("stage3", "cpu")
    objects = 0
    for image in next(iter(build_train_loader(cfg))):
        instances = image["instances"]
        shift = torch.rand(len(instances), 4, generator=torch.Generator().manual_seed(0)) * 3
        boxes = instances.gt_boxes.tensor + shift
        expected = instances.gt_masks.crop_and_resize(boxes, 28)
        found = instances.to("cuda").gt_masks.crop_and_resize(boxes.to("cuda"), 28)
        assert found.is_cuda and found.cpu().equal(expected)
        objects += len(instances)
    assert objects > 0


def test_batches_arrive_whole(gpu, cfg_of):
    """Of the prefetcher's copies, more than its buffers at once."""
    cfg = cfg_of("stage4", "cuda", "DATALOADER.NUM_WORKERS", "1")
    loader, ahead = build_train_loader(cfg), Prefetcher(build_train_loader(cfg), "cuda")
    ahead.load_state_dict(loader.state_dict())
    for _, expected, found in zip(range(6), loader, ahead, strict=False):
        for one, other in zip(expected, found, strict=True):
            assert other["image"].is_cuda and other["image"].cpu().equal(one["image"])
            assert other["sem_seg"].cpu().equal(one["sem_seg"])
            assert other["instances"].gt_boxes.tensor.cpu().equal(one["instances"].gt_boxes.tensor)


@pytest.mark.parametrize("gpu", [REAL], indirect=True)
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_training_goes_on(gpu, precision, tmp_path):
    """With all that makes it fast; on the pretended one: `test_on_gpu.py`."""
    file, opts = tiny_trainings.settings(
        "stage3", [precision, "CHANNELS_LAST", "FUSED", "PREFETCH"]
    )
    found = tiny_trainings.train(tiny_trainings.config(file, opts, "cuda", tmp_path))
    assert torch.tensor(found.scalars["total_loss"]).isfinite().all()

"""The peak of a step on the pretended device: what is counted, and that ours needs less."""

from __future__ import annotations

import peak_memory
import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore:.torch.cuda.amp.GradScaler:FutureWarning")

SMALL = (
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RPN.CONV_DIMS", "[64]",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "256", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "256",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "256", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "32",
)  # fmt: skip


def step(family: str, *, stock: bool) -> int:
    """Bytes that a step of two images of 256 x 512 px adds in bfloat16 (stock: float16)."""
    peak = peak_memory.measure(
        family, stock=stock, precision="bfloat16", size=(256, 512), number=2, objects=8,
        overrides=() if family == "deeplab" else SMALL,
    )  # fmt: skip
    return peak.bytes - peak.static


@pytest.mark.parametrize(
    "family", ["mask_rcnn", "panoptic", pytest.param("deeplab", marks=pytest.mark.slow)]
)
def test_ours_needs_a_third_less_than_stock(family):
    assert step(family, stock=False) <= 0.65 * step(family, stock=True)


def test_maps_that_are_not_computed_count_as_those_that_are(fake_gpu):
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(inplace=True),
        torch.nn.MaxPool2d(2, return_indices=False),
        torch.nn.ConvTranspose2d(8, 4, 2, 2),
    ).cuda()
    x = torch.randn(1, 3, 1024, 1024, device="cuda")

    def peak() -> int:
        torch.cuda.reset_peak_memory_stats()
        layers(x).float().mean().backward()
        return torch.cuda.max_memory_allocated()

    with peak_memory.without_maps(fake_gpu):
        skipped = peak()
        assert not layers(x).any()
    assert skipped == pytest.approx(peak(), rel=0.02)


def test_the_lines_of_the_peak(fake_gpu):
    batch = 2

    def function():
        return torch.zeros(batch, 1 << 20, device="cuda")

    with peak_memory._by_line(fake_gpu) as lines:
        kept = function()
    assert lines.total() == kept.numel() * 4
    assert "(2, 1048576)" in next(iter(lines))

"""Post-processing against Detectron2's own, bit for bit, and pasted masks worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from d2_cityscapes.evaluation.panoptic.instance_ids import train_ids_of_sem_seg
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.panoptic.postprocessing import (
    paste_masks,
    postprocess_instances,
    resize_scores,
    resize_to_labels,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "panoptic_fusion.npz"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- semantic scores ---

# (image size, output size) of an image in a batch of 64 x 96
SIZES = [
    ((64, 96), (64, 96)),
    ((64, 96), (128, 192)),
    ((50, 90), (50, 90)),
    ((50, 90), (77, 131)),
    ((61, 33), (24, 20)),
    ((61, 33), (90, 45)),
]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("image_size", "output_size"), SIZES)
def test_scores_are_those_of_detectron2(image_size, output_size, dtype, gradients):
    logits = torch.randn(19, 64, 96, generator=generator(0)).to(dtype)
    expected = sem_seg_postprocess(logits, image_size, *output_size)
    with torch.set_grad_enabled(gradients):
        scores = resize_scores(logits, image_size, output_size)
    assert scores.dtype == dtype
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("coarse_size", [(16, 24), (2, 3), (64, 96)])
@pytest.mark.parametrize(
    ("image_size", "output_size"), [sizes for sizes in SIZES if sum(sizes[1]) > 128]
)
def test_labels_are_those_of_detectron2(coarse_size, image_size, output_size):
    logits = torch.randn(19, *coarse_size, generator=generator(1))
    scores = F.interpolate(
        logits[None], scale_factor=64 / coarse_size[0], mode="bilinear", align_corners=False
    )[0]
    expected = sem_seg_postprocess(scores, image_size, *output_size).argmax(dim=0)
    labels = resize_to_labels(logits, (64, 96), image_size, output_size)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), expected)


# --- pasting ---


def test_pasted_by_hand():
    cells = torch.zeros(3, 2, 2)
    cells[0] = 1  # all of its box, of 4 x 2 pixels
    cells[1, 0] = 1  # the upper half of it
    cells[2] = 0.6
    boxes = torch.tensor([[1.0, 1.0, 5.0, 3.0], [0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0]])
    masks = paste_masks(cells, boxes, (4, 6))
    assert masks.dtype == torch.bool
    expected = torch.zeros(3, 4, 6, dtype=torch.bool)
    expected[0, 1:3, 1:5] = True
    expected[1, 0:2, 0:4] = True
    # Cells of 2 x 2 pixels: beside the edge of the box, a pixel has a quarter of its value from
    # outside, where there is nothing. 0.6 * 0.75 = 0.45 is too little, in the middle 0.6 is not.
    expected[2, 1:3, 3:5] = True
    assert torch.equal(masks, expected)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 46, width=32),
            st.floats(0, 30, width=32),
            st.floats(0.0625, 48, width=32),
            st.floats(0.0625, 32, width=32),
            st.integers(0, 2**32),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([2, 14, 28]),
    st.sampled_from([0.5, 0.3]),
)
@settings(max_examples=60, deadline=None)
def test_pasted_as_detectron2_does(rows, side, threshold):
    size = (32, 48)
    boxes = torch.tensor(
        [[x, y, min(x + w, size[1]), min(y + h, size[0])] for x, y, w, h, _ in rows]
    )
    cells = torch.stack([torch.rand(side, side, generator=generator(row[-1])) for row in rows])
    cells[0].round_()  # 0 and 1, with sums of exactly a half between
    expected = paste_masks_in_image(cells, boxes, size, threshold=threshold)
    assert torch.equal(paste_masks(cells, boxes, size, threshold), expected)


def golden_scenes() -> list[str]:
    with np.load(GOLDEN) as arrays:
        return sorted(name.split("/")[0] for name in arrays.files if name.endswith("pasted_bits"))


@pytest.mark.parametrize("scene", golden_scenes())
def test_pasted_as_the_reference_does(scene):
    with np.load(GOLDEN) as arrays:
        size = tuple(int(n) for n in arrays["image_size_hw"])
        boxes = torch.from_numpy(arrays[f"{scene}/boxes_yxyx"])[:, [1, 0, 3, 2]]
        cells = torch.from_numpy(arrays[f"{scene}/mask_logits"]).sigmoid()
        bits = np.unpackbits(arrays[f"{scene}/pasted_bits"], axis=1)
    masks = paste_masks(cells, boxes, size)
    np.testing.assert_array_equal(masks.numpy(), bits.reshape(-1, *size).astype(bool))


# --- instances ---


def detections(number: int, seed: int = 0, *, masks: bool = True) -> Instances:
    """Random ones in an image of 64 x 96, some beyond it, and the first of them wholly."""
    random = generator(seed)
    centre = torch.rand(number, 2, generator=random) * torch.tensor([96.0, 64.0])
    sides = 1 + 40 * torch.rand(number, 2, generator=random)
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], dim=1)
    boxes[:1] = torch.tensor([100.0, 10.0, 120.0, 30.0])
    found = Instances((64, 96))
    found.pred_boxes = Boxes(boxes)
    found.scores = torch.rand(number, generator=random)
    found.pred_classes = torch.arange(number) % 8
    if masks:
        found.pred_masks = torch.rand(number, 1, 28, 28, generator=random).sqrt()
    return found


@pytest.mark.parametrize("size", [(64, 96), (128, 192), (45, 101)])
@pytest.mark.parametrize("number", [0, 1, 30])
@pytest.mark.parametrize("masks", [True, False])
def test_instances_are_those_of_detectron2(number, size, masks):
    ours = postprocess_instances(detections(number, masks=masks), size)
    theirs = detector_postprocess(detections(number, masks=masks), *size)
    assert ours.image_size == theirs.image_size == size
    assert len(ours) == max(number - 1, 0)
    assert ours.get_fields().keys() == theirs.get_fields().keys()
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    for name in ours.get_fields().keys() - {"pred_boxes"}:
        mine, stock = ours.get(name), theirs.get(name)
        assert mine.dtype == stock.dtype and torch.equal(mine, stock)


@pytest.mark.parametrize(
    "convert", [lambda x: ROIMasks(x[:, 0]), torch.Tensor.half, torch.Tensor.double]
)
def test_other_kinds_of_masks(convert):
    found = [detections(5), detections(5)]
    for own in found:
        own.pred_masks = convert(own.pred_masks)
    theirs = detector_postprocess(found[1], 64, 96)
    assert torch.equal(postprocess_instances(found[0], (64, 96)).pred_masks, theirs.pred_masks)


def test_masks_are_separate_memory_to_write_to():
    found = postprocess_instances(detections(5), (64, 96))
    found.pred_masks[0] = True
    assert not found.pred_masks[1].all()
    assert found[:2].pred_masks.sum() == found.pred_masks[:2].sum()


# --- the model ---


@pytest.fixture
def inputs(batch) -> list[dict]:
    """One image as it is, one brought to twice its size, one that the batch pads."""
    return [
        {"image": batch[0]["image"]},
        {"image": batch[1]["image"], "height": 128, "width": 256},
        {"image": batch[2]["image"][:, :50, :70], "height": 75, "width": 105},
    ]


@pytest.fixture
def model(panoptic_cfg):
    panoptic_cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.1
    panoptic_cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 64
    torch.manual_seed(0)
    return build_model(panoptic_cfg).eval()


def stock_results(model, inputs) -> list[dict]:
    """What `PanopticFPN` makes of the same predictions, with all things as its class 0."""
    results = []
    for image, found, logits in zip(
        inputs, *model.inference(inputs, do_postprocess=False), strict=True
    ):
        image_size = tuple(image["image"].shape[-2:])
        size = (image.get("height", image_size[0]), image.get("width", image_size[1]))
        sem_seg = sem_seg_postprocess(logits, image_size, *size)
        found = detector_postprocess(found, *size)
        labels = sem_seg.argmax(dim=0)
        stuff = torch.where(labels < 11, labels + 1, 0)
        panoptic = combine_semantic_and_instance_outputs(found, stuff, 0.5, 64, 0.1)
        results.append({"sem_seg": sem_seg, "instances": found, "panoptic_seg": panoptic})
    return results


@pytest.mark.parametrize("head", ["SemSegFPNHead", "MiniDLSemSegHead"])
@pytest.mark.parametrize("scores", [True, False])
def test_model_gives_what_panoptic_fpn_gives(panoptic_cfg, inputs, head, scores):
    panoptic_cfg.MODEL.SEM_SEG_HEAD.NAME = head
    panoptic_cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.1
    panoptic_cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 64
    panoptic_cfg.TEST.SEM_SEG_SCORES = scores
    torch.manual_seed(0)
    model = build_model(panoptic_cfg).eval()
    with torch.no_grad():
        found, expected = model(inputs), stock_results(model, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        if scores:
            assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
        else:
            assert ours["sem_seg"].dtype == torch.uint8
        assert np.array_equal(
            train_ids_of_sem_seg(ours["sem_seg"]), theirs["sem_seg"].argmax(dim=0).numpy()
        )
        assert torch.equal(ours["instances"].pred_masks, theirs["instances"].pred_masks)
        assert torch.equal(ours["instances"].scores, theirs["instances"].scores)
        assert torch.equal(ours["panoptic_seg"][0], theirs["panoptic_seg"][0])
        for mine, stock in zip(ours["panoptic_seg"][1], theirs["panoptic_seg"][1], strict=True):
            shift = 11 if mine["isthing"] else -1
            assert mine["category_id"] == stock["category_id"] + shift
            assert {**mine, "category_id": 0} | {**stock, "category_id": 0} == {
                **mine, "category_id": 0,
            }  # fmt: skip
    assert any(s["isthing"] for result in found for s in result["panoptic_seg"][1])


def test_model_predicts_where_gradients_are_kept(model, inputs):
    result = model(inputs[:1])[0]
    assert result["sem_seg"].requires_grad
    assert result["panoptic_seg"][0].shape == (64, 128)


@torch.no_grad()
def test_labels_of_a_head_without_layers(panoptic_cfg, inputs):
    """Any semantic head will do: it has to predict logits of the padded batch."""
    panoptic_cfg.TEST.SEM_SEG_SCORES = False
    torch.manual_seed(0)
    model = build_model(panoptic_cfg).eval()
    expected = [result["sem_seg"] for result in model(inputs)]

    class Head(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, features, targets):
            return self.head(features, targets)

    model.sem_seg_head = Head(model.sem_seg_head)
    for ours, other in zip(model(inputs), expected, strict=True):
        assert torch.equal(ours["sem_seg"], other)

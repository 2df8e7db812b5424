from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.modeling.universal.postprocessing import postprocess_queries, resize_masks

THINGS = [c.train_id for c in CITYSCAPES.things]


def queries(number: int = 30, size: tuple[int, int] = (16, 32), seed: int = 0) -> tuple:
    """Classes (Q, 20) that are mostly sure, and masks (Q, *size) in blobs."""
    generator = torch.Generator().manual_seed(seed)
    classes = 4 * torch.randn(number, 20, generator=generator)
    blobs = torch.randn(1, number, 3, 5, generator=generator)
    masks = 6 * F.interpolate(blobs, size=size, mode="bicubic")[0]
    return classes, masks


def slowly(classes: Tensor, masks: Tensor, sizes: tuple, **options: Any) -> dict[str, Any]:
    """The published rules, all masks at once."""
    masks = resize_masks(masks, *sizes)
    probabilities, inside = classes.softmax(-1), masks.sigmoid()
    semantics = torch.einsum("qc,qhw->chw", probabilities[:, :-1], inside)
    pairs, places = probabilities[:, :-1].flatten().topk(options["detections"])
    detected = []
    for score, place in zip(pairs.tolist(), places.tolist(), strict=True):
        query, train_id = divmod(place, 19)
        mask = masks[query] > 0
        if train_id in THINGS and mask.any():
            score *= inside[query][mask].mean().item()
            detected.append((round(score, 4), THINGS.index(train_id), mask))
    scores, labels = probabilities.max(-1)
    kept = [
        q for q in range(len(masks)) if labels[q] < 19 and scores[q] > options["object_threshold"]
    ]
    panoptic, segments = torch.zeros(sizes[2], dtype=torch.int32), []
    stuff: dict[int, int] = {}
    best = (scores[kept, None, None] * inside[kept]).argmax(0)
    for rank, query in enumerate(kept):
        label, mask = int(labels[query]), (best == rank) & (inside[query] >= 0.5)
        whole = (inside[query] >= 0.5).sum()
        if not mask.any() or (best == rank).sum() / whole < options["overlap_threshold"]:
            continue
        if label not in stuff:
            segments.append((len(segments) + 1, label))
            if label not in THINGS:
                stuff[label] = len(segments)
        panoptic[mask] = stuff.get(label, len(segments))
    return {"sem_seg": semantics, "instances": detected, "panoptic_seg": (panoptic, segments)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at_once", [1, 3 * 40 * 90, 10**9])
def test_a_few_masks_at_a_time_give_what_all_at_once_do(seed, at_once):
    classes, masks = queries(seed=seed)
    sizes = ((64, 128), (60, 120), (40, 90))
    options = {"detections": 60, "object_threshold": 0.5, "overlap_threshold": 0.4}
    wanted = slowly(classes, masks, sizes, **options)
    found = postprocess_queries(classes, masks, sizes, table=CITYSCAPES, at_once=at_once, **options)
    torch.testing.assert_close(found["sem_seg"], wanted["sem_seg"])
    panoptic, segments = found["panoptic_seg"]
    assert torch.equal(panoptic, wanted["panoptic_seg"][0])
    assert [(s["id"], s["category_id"]) for s in segments] == wanted["panoptic_seg"][1]
    assert [s["area"] for s in segments] == [int((panoptic == s["id"]).sum()) for s in segments]
    instances = found["instances"]
    assert len(instances) == len(wanted["instances"]) > 3
    for own, (score, label, mask) in zip(range(len(instances)), wanted["instances"], strict=True):
        assert instances.scores[own].item() == pytest.approx(score, abs=2e-4)
        assert instances.pred_classes[own] == label
        assert torch.equal(instances.pred_masks[own], mask)
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert instances.pred_boxes.tensor[own].tolist() == [
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        ]  # fmt: skip


def test_transformers_agrees_where_it_does_not_resize_masks_to_its_own_size():
    transformers = pytest.importorskip("transformers")
    size = (384, 384)  # which its post-processing brings all masks to
    # Its panoptics give a pixel to the best mask though none holds it, and count the pixels of
    # a mask by its probability times the score: so here one mask holds all, and all are sure.
    _, masks = queries(12, size=(96, 96), seed=2)
    masks[0] = 1.0
    masks[1:] = torch.where(masks[1:] > 5, masks[1:] + 3, -9.0)
    generator = torch.Generator().manual_seed(0)
    classes = torch.zeros(12, 20)
    classes[range(12), torch.randint(0, 19, (12,), generator=generator)] = 30.0
    classes[3] = 0  # no object
    found = postprocess_queries(
        classes,
        masks,
        (size, size, size),
        table=CITYSCAPES,
        object_threshold=0.5,
        overlap_threshold=0.2,
    )
    processor = transformers.Mask2FormerImageProcessor()
    outputs = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    (semantics,) = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(found["sem_seg"].argmax(0), semantics)
    stuff = {c.train_id for c in CITYSCAPES.stuff}
    (theirs,) = processor.post_process_panoptic_segmentation(
        outputs, threshold=0.5, overlap_mask_area_threshold=0.2, label_ids_to_fuse=stuff
    )
    panoptic, segments = found["panoptic_seg"]
    wanted, numbers = theirs["segmentation"], {s["id"] for s in theirs["segments_info"]}
    assert len(segments) == len(numbers) > 2
    for segment in segments:
        own = panoptic == segment["id"]
        (other,) = wanted[own].unique().tolist()
        assert torch.equal(wanted == other, own)
        (info,) = {s["label_id"] for s in theirs["segments_info"] if s["id"] == other}
        assert info == segment["category_id"]
    (theirs,) = processor.post_process_instance_segmentation(
        outputs, threshold=0.0, return_binary_maps=True
    )
    boxes = sorted((round(s["score"], 3), s["label_id"]) for s in theirs["segments_info"])
    things = [pair for pair in boxes if pair[1] in THINGS]
    few = postprocess_queries(
        classes, masks, (size, size, size), table=CITYSCAPES, detections=len(classes)
    )["instances"]
    ours = sorted(
        (round(score, 3), THINGS[label])
        for score, label in zip(few.scores.tolist(), few.pred_classes.tolist(), strict=True)
    )
    assert ours == things


def test_a_query_that_better_ones_cover_is_dropped():
    classes = torch.full((2, 20), -9.0)
    classes[0, 13], classes[1, 14] = 9.0, 8.0
    classes[1, 19] = 5.0  # less sure
    masks = torch.full((2, 4, 8), -9.0)
    masks[0, :, :6], masks[1, :, 2:] = 9.0, 9.0
    sizes = ((4, 8), (4, 8), (4, 8))
    options = {"table": CITYSCAPES, "object_threshold": 0.5}
    both = postprocess_queries(classes, masks, sizes, overlap_threshold=0.3, **options)
    assert [s["category_id"] for s in both["panoptic_seg"][1]] == [13, 14]
    assert both["panoptic_seg"][0][0].tolist() == [1, 1, 1, 1, 1, 1, 2, 2]
    one = postprocess_queries(classes, masks, sizes, overlap_threshold=0.5, **options)
    assert one["panoptic_seg"][0][0].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]


def test_stuff_of_one_class_is_one_segment_things_are_not():
    for train_id, number in ((10, 1), (13, 2)):
        classes = torch.full((2, 20), -9.0)
        classes[:, train_id] = 9.0
        masks = torch.full((2, 4, 8), -9.0)
        masks[0, :, :4], masks[1, :, 4:] = 9.0, 9.0
        sizes = ((4, 8), (4, 8), (4, 8))
        found = postprocess_queries(classes, masks, sizes, table=CITYSCAPES)["panoptic_seg"]
        assert len(found[1]) == number
        assert (found[0] > 0).all()


def test_nothing_but_no_object_is_void():
    classes = torch.zeros(3, 20)
    classes[:, 19] = 50.0
    masks = torch.ones(3, 4, 8)
    found = postprocess_queries(classes, masks, ((4, 8),) * 3, table=CITYSCAPES)
    assert found["panoptic_seg"][1] == []
    assert not found["panoptic_seg"][0].any()


def test_semantics_alone_and_as_classes():
    classes, masks = queries()
    sizes = ((64, 128),) * 3
    scores = postprocess_queries(classes, masks, sizes, table=CITYSCAPES, instances=False)
    assert list(scores) == ["sem_seg"]
    labels = postprocess_queries(classes, masks, sizes, table=CITYSCAPES, sem_seg_scores=False)
    assert torch.equal(labels["sem_seg"].long(), scores["sem_seg"].argmax(0))


class LargestFloats(TorchDispatchMode):
    """The most floats that one operation gives."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.most = max(self.most, x.numel())
        return result


def test_never_all_masks_as_floats_of_the_picture():
    classes, masks = queries(60)
    pixels = 64 * 128
    with LargestFloats() as largest:
        postprocess_queries(
            classes, masks, ((64, 128),) * 3, table=CITYSCAPES, at_once=8 * pixels, detections=60
        )
    assert largest.most == 19 * pixels  # the semantic scores

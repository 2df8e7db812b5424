"""fuse_panoptic against golden scenes, hand-worked scenes and Detectron2's own function."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_panoptic
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.modeling.panoptic.fusion import best_classes, fuse_panoptic

GOLDEN = Path(__file__).parents[2] / "golden" / "panoptic_fusion.npz"
ROAD, SIDEWALK, BUILDING, CAR = 0, 1, 2, 13
PERSON_THING, CAR_THING = 0, 2


def instances(masks, classes, scores, boxes=None):
    found = SimpleNamespace(
        pred_masks=masks, pred_classes=torch.tensor(classes), scores=torch.tensor(scores)
    )
    if boxes is not None:
        found.pred_boxes = SimpleNamespace(tensor=boxes)
    return found


def rectangles(size, *boxes):
    """(N, H, W) masks of half-open (x0, y0, x1, y1) boxes."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def nobody(size):
    return instances(torch.zeros(0, *size, dtype=torch.bool), [], [])


# --- golden scenes, made with the reference implementation (see tests/golden/README.md) ---


def golden_scenes():
    with np.load(GOLDEN) as arrays:
        return sorted({name.split("/")[0] for name in arrays.files if "/" in name})


def golden_inputs(arrays, scene, *, boxes=True):
    size = tuple(int(n) for n in arrays["image_size_hw"])
    classes, scores = arrays[f"{scene}/classes"], arrays[f"{scene}/scores"]
    masks = torch.zeros(len(classes), *size, dtype=torch.bool)
    if len(classes):
        bits = np.unpackbits(arrays[f"{scene}/pasted_bits"], axis=1)
        masks = torch.from_numpy(bits.reshape(-1, *size).astype(bool))
    yxyx = torch.from_numpy(arrays[f"{scene}/boxes_yxyx"]).reshape(-1, 4)
    found = instances(masks, classes.tolist(), scores.tolist(), yxyx[:, [1, 0, 3, 2]])
    if not boxes:
        del found.pred_boxes
    score, overlap, area = arrays[f"{scene}/params"].tolist()
    rules = {"score_threshold": score, "overlap_threshold": overlap, "stuff_area_limit": int(area)}
    return torch.from_numpy(arrays[f"{scene}/sem_pred"]), found, rules


@pytest.mark.parametrize("boxes", [True, False], ids=["boxes", "no boxes"])
@pytest.mark.parametrize("scene", golden_scenes())
def test_golden_scene(scene, boxes):
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    sem_pred, found, rules = golden_inputs(arrays, scene, boxes=boxes)
    panoptic, segments = fuse_panoptic(sem_pred, found, **rules)

    class_of = np.full(len(segments) + 1, 255)
    for segment in segments:
        class_of[segment["id"]] = segment["category_id"]
    np.testing.assert_array_equal(
        class_of[panoptic.numpy()], arrays[f"{scene}/class_map_void_merged"]
    )

    # The same partition and classes: things by descending score, then stuff by class, empty ones
    # and left-over thing pixels aside.
    map_, classes = arrays[f"{scene}/segment_map"], arrays[f"{scene}/segment_class"]
    crowd, score = arrays[f"{scene}/segment_iscrowd"], arrays[f"{scene}/segment_score"]
    kept = [i for i in range(1, len(classes)) if not crowd[i] and (map_ == i).any()]
    assert [s["category_id"] for s in segments] == classes[kept].tolist()
    for segment, i in zip(segments, kept, strict=True):
        np.testing.assert_array_equal(panoptic.numpy() == segment["id"], map_ == i)
        assert segment["area"] == (map_ == i).sum()
        assert segment["isthing"] == (classes[i] >= 11)
        if segment["isthing"]:
            assert segment["score"] == score[i]
            assert found.scores[segment["instance_id"]] == score[i]


def test_golden_scene_from_logits():
    with np.load(GOLDEN) as arrays:
        sem_pred, found, rules = golden_inputs(arrays, "scene01")
        logits = torch.from_numpy(arrays["scene01/sem_logits_quarter"])
    logits = torch.nn.functional.interpolate(
        logits[None], size=sem_pred.shape, mode="bilinear", align_corners=False
    )[0]
    panoptic, segments = fuse_panoptic(logits, found, **rules)
    expected, expected_segments = fuse_panoptic(sem_pred, found, **rules)
    assert (panoptic != expected).sum() <= 18
    assert len(segments) == len(expected_segments)


# --- hand-worked scenes of 10 x 20 pixels ---

SIZE = (10, 20)


def test_rules_on_paper():
    semantic = torch.full(SIZE, ROAD, dtype=torch.uint8)
    semantic[:, 15:] = CAR  # 50 px, of which no instance takes more than 20
    semantic[0, :10] = SIDEWALK  # 10 px
    found = instances(
        rectangles(
            SIZE,
            (0, 4, 10, 8),  # 40 px, all free
            (5, 4, 10, 10),  # 30 px, 20 of them taken: 0.67, dropped
            (8, 6, 12, 8),  # 8 px, 4 taken: exactly a half stays
            (15, 0, 17, 10),  # 20 px with score exactly 0.5: out
            (17, 0, 19, 10),  # 20 px
        ),
        [CAR_THING, PERSON_THING, PERSON_THING, CAR_THING, CAR_THING],
        [0.9, 0.8, 0.7, 0.5, 0.6],
    )
    panoptic, segments = fuse_panoptic(semantic, found, stuff_area_limit=11)
    assert panoptic.dtype == torch.int32
    assert segments == [
        {"id": 1, "isthing": True, "category_id": 13, "instance_id": 0, "area": 40}
        | {"score": pytest.approx(0.9)},
        {"id": 2, "isthing": True, "category_id": 11, "instance_id": 2, "area": 4}
        | {"score": pytest.approx(0.7)},
        {"id": 3, "isthing": True, "category_id": 13, "instance_id": 4, "area": 20}
        | {"score": pytest.approx(0.6)},
        {"id": 4, "isthing": False, "category_id": ROAD, "area": 150 - 10 - 44},
    ]
    expected = torch.full(SIZE, 4, dtype=torch.int32)
    expected[0, :10] = 0  # 10 px of sidewalk are below 11
    expected[4:8, :10] = 1
    expected[6:8, 10:12] = 2
    expected[:, 15:] = 0  # left-over car pixels are void
    expected[:, 17:19] = 3
    assert torch.equal(panoptic, expected)


def test_stuff_area_limit_is_inclusive():
    semantic = torch.zeros(SIZE, dtype=torch.int64)
    for limit, count in [(200, 1), (201, 0)]:
        assert len(fuse_panoptic(semantic, nobody(SIZE), stuff_area_limit=limit)[1]) == count


def test_no_instances_and_no_stuff():
    semantic = torch.full(SIZE, 255, dtype=torch.uint8)
    panoptic, segments = fuse_panoptic(semantic, nobody(SIZE), stuff_area_limit=0)
    assert not panoptic.any()
    assert segments == []


@pytest.mark.parametrize("boxes", [None, torch.tensor([[2.0, 2.0, 6.0, 6.0]] * 2)])
def test_empty_masks_are_left_out(boxes):
    masks = rectangles(SIZE, (0, 0, 0, 0), (2, 2, 6, 6))
    found = instances(masks, [CAR_THING] * 2, [0.9, 0.8], boxes)
    panoptic, segments = fuse_panoptic(torch.full(SIZE, CAR), found)
    assert [s["instance_id"] for s in segments] == [1]
    assert torch.equal(panoptic, masks[1].int())


def test_boxes_beyond_the_image():
    masks = rectangles(SIZE, (0, 0, 5, 5), (15, 5, 20, 10))
    boxes = torch.tensor([[-3.5, -2.0, 5.0, 5.0], [15.0, 5.0, 24.2, 10.0]])
    found = instances(masks, [CAR_THING] * 2, [0.9, 0.8], boxes)
    panoptic, segments = fuse_panoptic(torch.full(SIZE, CAR), found)
    assert [s["area"] for s in segments] == [25, 25]
    assert torch.equal(panoptic, masks[0].int() + 2 * masks[1].int())


def test_equal_scores_keep_their_order():
    masks = rectangles(SIZE, (0, 0, 8, 10), (2, 0, 10, 10))  # three quarters in common
    found = instances(masks, [CAR_THING] * 2, [0.75, 0.75])
    _, segments = fuse_panoptic(torch.full(SIZE, CAR), found)
    assert [s["instance_id"] for s in segments] == [0]


def test_inputs_are_left_alone():
    semantic = torch.zeros(SIZE, dtype=torch.int64)
    found = instances(rectangles(SIZE, (0, 0, 5, 5)).float(), [CAR_THING], [0.9])
    fuse_panoptic(semantic, found)
    assert not semantic.any()
    assert found.pred_masks.sum() == 25


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (instances(rectangles((5, 5), (0, 0, 2, 2)), [0], [0.9]), r"\(5, 5\)"),
        (instances(rectangles(SIZE, (0, 0, 2, 2)), [13], [0.9]), "pred_classes has 13"),
    ],
)
def test_refuses_what_does_not_fit(found, message):
    with pytest.raises(ValueError, match=message):
        fuse_panoptic(torch.zeros(SIZE, dtype=torch.int64), found)


# --- the best class of scores ---


@given(
    st.integers(1, 20), st.integers(1, 12), st.integers(1, 12), st.integers(1, 50), st.integers(0)
)
@settings(max_examples=50, deadline=None)
def test_best_classes_are_argmax(number, height, width, values, seed):
    generator = torch.Generator().manual_seed(seed % 2**60)
    scores = torch.randint(-values, values, (number, height, width), generator=generator).float()
    expected = scores.argmax(dim=0)  # of equal scores, many here, the first
    for form in (
        scores,
        (own for own in scores),
        scores.permute(1, 2, 0).contiguous().movedim(2, 0),
    ):
        classes = best_classes(form)
        assert classes.dtype == torch.uint8
        assert torch.equal(classes.long(), expected)


def test_best_classes_of_extremes():
    infinite = float("inf")
    scores = torch.tensor([[-infinite, infinite, 0.0], [-infinite, infinite, infinite]])[:, None]
    assert best_classes(scores).tolist() == [[0, 0, 1]]
    scores = torch.zeros(256, 1, 1)
    scores[255] = 1
    assert best_classes(scores.requires_grad_()).item() == 255


# --- instance ids ---


def test_instance_ids():
    semantic = torch.full(SIZE, BUILDING)
    semantic[9] = 255
    masks = rectangles(SIZE, (0, 0, 4, 4), (5, 0, 9, 4), (10, 0, 14, 4))
    found = instances(masks, [CAR_THING, PERSON_THING, CAR_THING], [0.7, 0.8, 0.9])
    panoptic, segments_info = fuse_panoptic(semantic, found, stuff_area_limit=1)
    ids = torch.from_numpy(ids_of_panoptic(panoptic.numpy(), segments_info))
    expected = torch.full(SIZE, 11, dtype=torch.int32)  # building
    expected[9] = 0  # void is label id 0
    expected[:4, 10:14] = 26000  # the better of the two cars comes first
    expected[:4, :4] = 26001
    expected[:4, 5:9] = 24000
    assert ids.dtype == torch.int32
    assert torch.equal(ids, expected)
    assert CITYSCAPES.unknown_ids(ids.numpy()) == []


# --- agreement with Detectron2 ---


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_equals_detectron2_under_its_rules(seed, boxes):
    panoptic_fpn = pytest.importorskip("detectron2.modeling.meta_arch.panoptic_fpn")
    from detectron2.structures import Boxes, Instances

    generator = torch.Generator().manual_seed(seed)
    height, width, number = 60, 90, 40

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    corner = random(number, 2) * torch.tensor([width, height]) * 0.9
    boxes_xyxy = torch.cat([corner, corner + 3 + random(number, 2) * 30], dim=1)
    found = Instances((height, width))
    found.pred_masks = rectangles((height, width), *boxes_xyxy.int().tolist())
    found.pred_masks &= random(number, height, width) > 0.3
    found.pred_masks[3] = False
    found.scores, found.pred_classes = random(number), torch.arange(number) % 8
    if boxes:
        found.pred_boxes = Boxes(boxes_xyxy)
    labels = (random(6, 9) * 19).long().repeat_interleave(10, 0).repeat_interleave(10, 1)

    panoptic, segments = fuse_panoptic(labels, found, stuff_area_limit=150)
    stuff_only = torch.where(labels < 11, labels + 1, 0)  # 0 is its one "thing" class
    expected, expected_segments = panoptic_fpn.combine_semantic_and_instance_outputs(
        found, stuff_only, 0.5, 150, 0.5
    )
    assert torch.equal(panoptic, expected)
    assert len(segments) == len(expected_segments) > 15
    for ours, theirs in zip(segments, expected_segments, strict=True):
        shift = 11 if ours["isthing"] else -1
        assert ours["id"] == theirs["id"]
        assert ours["category_id"] == theirs["category_id"] + shift
        assert ours.get("score") == theirs.get("score")
        assert ours.get("instance_id") == theirs.get("instance_id")
        assert ours["area"] == (expected == theirs["id"]).sum()


# --- what it costs, and what it is for ---


class Waits(TorchDispatchMode):
    """Counts what would stop for a GPU: values read, and shapes that depend on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        by_mask = name.startswith("aten::index") and any(
            index is not None and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        self.count += by_mask or any(name.startswith(f"aten::{own}") for own in self.NAMES)
        return function(*args, **(kwargs or {}))


def test_nothing_waits_for_single_instances():
    counts = []
    for number in (2, 40):
        boxes = torch.tensor([[i / 8, 0.0, 10.0, 5.0] for i in range(number)])
        found = instances(
            rectangles(SIZE, *boxes.int().tolist()), [0] * number, [0.9] * number, boxes
        )
        with Waits() as waits:
            fuse_panoptic(torch.rand(19, *SIZE), found)
        counts.append(waits.count)
    assert counts[0] == counts[1]


def test_the_visualizer_draws_it():
    visualizer = pytest.importorskip("detectron2.utils.visualizer")
    from detectron2.data import MetadataCatalog

    size = (100, 200)
    semantic = torch.full(size, ROAD)
    semantic[:50] = BUILDING
    semantic[:, 150:] = CAR  # void: no instance takes it
    found = instances(
        rectangles(size, (20, 20, 60, 60), (80, 30, 120, 90)), [CAR_THING, PERSON_THING], [0.9, 0.8]
    )
    panoptic, segments = fuse_panoptic(semantic, found, stuff_area_limit=1)
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    drawn = visualizer.Visualizer(np.zeros((*size, 3), dtype=np.uint8), metadata)
    drawn.draw_panoptic_seg(panoptic, segments, alpha=1.0)
    picture = drawn.output.get_image().astype(int)
    captions = {text.get_text().split()[0] for text in drawn.output.ax.texts}
    assert captions == {"road", "building", "car", "person"}
    road, building, car, person, void = (
        tuple(picture[y, x]) for y, x in [(95, 10), (5, 10), (45, 25), (80, 85), (50, 180)]
    )
    np.testing.assert_allclose(road, CITYSCAPES.classes[ROAD].color, atol=2)
    np.testing.assert_allclose(building, CITYSCAPES.classes[BUILDING].color, atol=2)
    assert void == (0, 0, 0)
    assert len({road, building, car, person, void}) == 5  # things are in random shades

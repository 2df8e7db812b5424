"""What counts as the same, by hand-made results."""

import numpy as np
import pytest

from d2_cityscapes.export.agreement import Agreement


def instances(boxes, classes, scores):
    masks = np.zeros((len(boxes), 10, 10), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, np.asarray(boxes, int).reshape(-1, 4), strict=True):
        mask[y0:y1, x0:x1] = True
    return {
        "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
        "classes": np.array(classes, dtype=int),
        "scores": np.array(scores, dtype=np.float32),
        "masks": masks,
    }


def of(model, export) -> Agreement:
    found = Agreement()
    found.add(model, export)
    return found


def test_pixels_of_labels():
    one = np.zeros((40, 100), dtype=np.uint8)
    other = one.copy()
    other.flat[:4] = 1  # 4 of 4000 are 0.1 %
    assert of({"sem_seg": one}, {"sem_seg": other}).problems() == []
    other.flat[4] = 1
    (problem,) = of({"sem_seg": one}, {"sem_seg": other}).problems()
    assert "3995 of 4000" in problem


def test_panoptics_do_not_ask_for_the_number_of_an_object_but_for_its_extent():
    one = np.array([[7, 26000, 26000, 26001, 26001, 0]])
    renumbered = np.array([[7, 26001, 26001, 26000, 26000, 0]])
    assert of({"panoptic_ids": one}, {"panoptic_ids": renumbered}).equal_panoptic == 6
    merged = np.array([[7, 26000, 26000, 26000, 26000, 0]])
    for pair in ((one, merged), (merged, one)):
        assert of(*({"panoptic_ids": ids} for ids in pair)).equal_panoptic == 4
    another_class = np.array([[8, 24000, 24000, 26001, 26001, 0]])
    assert of({"panoptic_ids": one}, {"panoptic_ids": another_class}).equal_panoptic == 3


@pytest.mark.parametrize(
    ("boxes", "classes", "twins"),
    [
        ([[1, 1, 5, 5.4], [2, 2, 8, 8]], [0, 1], 4),
        ([[1, 1, 5, 5.6], [2, 2, 8, 8]], [0, 1], 2),  # beyond half a pixel
        ([[1, 1, 5, 5], [2, 2, 8, 8]], [0, 2], 2),  # another class
        ([[1, 1, 5, 5]], [0], 2),  # one is missing
        ([], [], 0),
    ],
)
def test_detections_have_twins(boxes, classes, twins):
    model = instances([[1, 1, 5, 5], [2, 2, 8, 8]], [0, 1], [0.9, 0.8])
    found = of({"instances": model}, {"instances": instances(boxes, classes, [0.9] * len(boxes))})
    assert (found.twins, found.detections) == (twins, 2 + len(boxes))
    assert bool(found.problems()) == (twins < 4)


def test_masks_of_twins_are_compared():
    model = instances([[1, 1, 5, 5]], [0], [0.9])
    export = instances([[1, 1, 5, 5]], [0], [0.89])
    export["masks"][0, 8, 8] = True
    found = of({"instances": model}, {"instances": export})
    assert (found.mask_pixels, found.mask_difference) == (16, 1)
    assert found.score_difference == pytest.approx(0.01)
    assert "masks" in found.problems()[0]

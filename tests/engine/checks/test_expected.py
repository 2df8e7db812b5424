"""TEST.EXPECTED_RESULTS that no evaluation can meet are found before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from d2_cityscapes.engine.checks.expected import check_expected_results
from d2_cityscapes.errors import D2CityscapesError


@pytest.mark.parametrize(
    ("config", "entry", "message"),
    [
        ("instance", ["segm", "AP5O", 1.0, 1.0], "segm has no AP5O on .*; nearest: .*AP50"),
        ("instance", ["segm", "mIoU", 1.0, 1.0], "segm has no mIoU .*; it has AP, AP50, AP75"),
        ("instance", ["bbox", "AP-sky", 1.0, 1.0], "bbox has no AP-sky"),
        ("instance", ["sem_seg", "mIoU", 1.0, 1.0], "the model predicts bbox, segm"),
        ("semantic", ["sem_seg", "MIoU", 1.0, 1.0], "sem_seg has no MIoU on .*nearest: mIoU"),
        ("panoptic", ["panoptic_seg", "PQ_car", 1.0, 1.0], "nearest: PQ-car"),
        ("panoptic", ["other", "panoptic_seg", "PQ", 1.0, 1.0], "DATASETS.TEST is"),
        ("instance", ["segm", "AP", 1.0], r"is not \[task, metric, value, tolerance\]"),
    ],
)
def test_refused(configure: Callable, config: str, entry: list, message: str) -> None:
    cfg = configure(f"quick/{config}.yaml", "TEST.EXPECTED_RESULTS", [entry])
    with pytest.raises(D2CityscapesError, match=message) as caught:
        check_expected_results(cfg)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["instance", "semantic", "deeplab", "panoptic"])
def test_those_of_the_quick_configs_can_be_met(configure: Callable, config: str) -> None:
    cfg = configure(f"quick/{config}.yaml")
    assert cfg.TEST.EXPECTED_RESULTS
    check_expected_results(cfg)


def test_metrics_of_the_dataset(configure: Callable) -> None:
    """Classes are those of the dataset that an entry is about."""
    idd = ["DATASETS.TEST", "('idd_shards_val',)", "TEST.EXPECTED_RESULTS"]
    check_expected_results(configure("quick/semantic.yaml", *idd, [["sem_seg", "IoU-curb", 1, 1]]))
    with pytest.raises(D2CityscapesError, match="no IoU-terrain on idd_shards_val"):
        wrong = [["sem_seg", "IoU-terrain", 1, 1]]
        check_expected_results(configure("quick/semantic.yaml", *idd, wrong))

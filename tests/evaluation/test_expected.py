"""TEST.EXPECTED_RESULTS as a gate over results of any task and any number of datasets."""

from __future__ import annotations

import pytest

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.expected import check_expected, parse_expected
from d2_cityscapes.evaluation.results import make_rows


def rows(dataset: str, **tasks: dict) -> list:
    return [
        row
        for task, scores in tasks.items()
        for row in make_rows(
            task,
            {metric: (value, 1) for metric, value in scores.items()},
            protocol="any",
            dataset=dataset,
            images=4,
        )
    ]


ONE = rows("one", segm={"AP": 40.0, "APs": None}, panoptic_seg={"PQ": 60.0, "PQ_dagger": 61.5})
TWO = rows("two", segm={"AP": 30.0, "APs": 10.0})


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [["segm", "AP", 40.0, 0.0]],
        [["segm", "AP", 41, 1], ["panoptic_seg", "PQ_dagger", 61.0, 0.5]],
        (("one", "panoptic_seg", "PQ", 60.0, 0.1),),
    ],
)
def test_met(entries) -> None:
    check_expected(entries, ONE)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["segm", "AP", 41.0, 0.9], r"expected segm AP 41 \+- 0\.9, found 40\.0000 \(one\)"),
        (["segm", "APs", 0.0, 100.0], r"found null"),
        (["segm", "mIoU", 0.0, 100.0], r"found no such result"),
        (["bbox", "AP", 0.0, 100.0], r"found no such result"),
        (["two", "segm", "AP", 40.0, 1.0], r"expected two segm AP .* no such result \(two\)"),
    ],
)
def test_missed(entry: list, message: str) -> None:
    with pytest.raises(D2CityscapesError, match=message) as error:
        check_expected([entry, ["panoptic_seg", "PQ", 60.0, 1.0]], ONE)
    assert error.value.details == ()


def test_several_datasets() -> None:
    both = ONE + TWO
    check_expected([["segm", "AP", 35.0, 5.0]], both)
    check_expected([["two", "segm", "AP", 30.0, 1.0], ["one", "segm", "AP", 40.0, 1.0]], both)
    with pytest.raises(D2CityscapesError, match=r"found 30\.0000 \(two\)"):
        check_expected([["segm", "AP", 40.0, 1.0]], both)
    with pytest.raises(D2CityscapesError, match="2 results are missed") as error:
        check_expected([["segm", "AP", 90.0, 1.0]], both)
    assert len(error.value.details) == 2


def test_nothing_scored_meets_nothing() -> None:
    with pytest.raises(D2CityscapesError, match="nothing was scored"):
        check_expected([["segm", "AP", 50.0, 50.0]], [])


@pytest.mark.parametrize(
    "entry",
    [[], ["segm", "AP", 3.0], ["a", "b", "c", "d", 1.0, 1.0], ["segm", "AP", "x", 1.0], "segm", 3],
)
def test_other_forms_are_refused(entry) -> None:
    with pytest.raises(D2CityscapesError, match=r"is not \[task, metric, value, tolerance\]"):
        parse_expected([entry])

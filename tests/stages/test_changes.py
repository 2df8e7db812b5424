"""A stage that has begun: which settings and weights it may go on with."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode

from d2_cityscapes.config import get_cfg
from d2_cityscapes.stages.changes import (
    StageChangedError,
    check_first_weights,
    check_settings,
    write_first_weights,
)


def _cfg(*opts: object) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(_cfg("SOLVER.STEPS", (10, 20)).dump())
    return tmp_path


def _changes(folder: Path, *opts: object) -> str:
    with pytest.raises(StageChangedError) as error:
        check_settings(folder, _cfg("SOLVER.STEPS", (10, 20), *opts))
    return str(error.value)


def test_what_the_result_follows_from_is_kept(begun: Path) -> None:
    check_settings(begun, _cfg("SOLVER.STEPS", (10, 20)))
    line = _changes(begun, "SOLVER.BASE_LR", 0.5, "SEED", 7)
    assert "SEED was -1, now 7" in line and "SOLVER.BASE_LR was 0.001, now 0.5" in line
    assert "delete the folder" in line and "--output-dir" in line and "\n" not in line
    assert "DATASETS.TEST was [], now ['a']" in _changes(begun, "DATASETS.TEST", ("a",))
    assert "FREEZE.SCHEDULE" in _changes(begun, "MODEL.FREEZE.SCHEDULE", [[3, ["x"]]])
    assert "SOLVER.AMP.ENABLED" in _changes(begun, "SOLVER.AMP.ENABLED", True)


def test_many_changes_are_a_line_and_details(begun: Path) -> None:
    opts = ["SEED", 7, "SOLVER.BASE_LR", 0.5, "SOLVER.MAX_ITER", 9, "INPUT.FORMAT", "RGB"]
    with pytest.raises(StageChangedError, match="and 1 more") as error:
        check_settings(begun, _cfg("SOLVER.STEPS", (10, 20), *opts))
    assert sorted(line.split()[0] for line in error.value.details) == sorted(opts[::2])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("OUTPUT_DIR", "elsewhere"),
        ("DATALOADER.NUM_WORKERS", 9),
        ("SOLVER.CHECKPOINT_PERIOD", 9),
        ("TEST.EXPECTED_RESULTS", [["segm", "AP", 1.0, 1.0]]),
        ("MODEL.WEIGHTS", "other.pth"),
    ],
)
def test_what_changes_nothing_is_free(begun: Path, key: str, value: object) -> None:
    check_settings(begun, _cfg("SOLVER.STEPS", (10, 20), key, value))


def test_another_device_brings_its_precision(begun: Path) -> None:
    opts = ["SOLVER.STEPS", (10, 20), "SOLVER.AMP.ENABLED", True]
    check_settings(begun, _cfg(*opts, "MODEL.DEVICE", "cuda"))


def test_keys_that_one_side_lacks_are_not_compared(begun: Path) -> None:
    path = begun / "config.yaml"
    lines = path.read_text().replace("SEED: -1", "OLD_KEY: 1")
    path.write_text(lines)
    check_settings(begun, _cfg("SOLVER.STEPS", (10, 20), "SEED", 5))


def test_a_config_cut_short_stops_nothing(begun: Path) -> None:
    path = begun / "config.yaml"
    text = path.read_text()
    for length in [*range(0, 1100, 29), len(text) // 2, len(text) - 2]:
        path.write_text(text[:length])
        check_settings(begun, _cfg("SOLVER.STEPS", (10, 20)))
    path.unlink()
    check_settings(begun, _cfg("SOLVER.STEPS", (1, 2)))


def test_weights_are_compared_by_content(tmp_path: Path) -> None:
    stage, weights, copy = tmp_path / "stage", tmp_path / "a.pth", tmp_path / "b.pth"
    check_first_weights(stage, "any.pth")  # of a stage that nothing was noted down of
    weights.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    write_first_weights(stage, str(weights))
    check_first_weights(stage, str(weights))
    check_first_weights(stage, str(copy))
    weights.write_bytes(b"other weights")
    for other in (str(weights), "https://weights.pth", ""):
        with pytest.raises(StageChangedError, match=r"has begun with other weights .*delete the"):
            check_first_weights(stage, other)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_note_of_the_weights(tmp_path: Path, text: str) -> None:
    (tmp_path / "first_weights.json").write_text(text)
    with pytest.raises(StageChangedError, match=r"first_weights\.json: does not say which"):
        check_first_weights(tmp_path, "")


@pytest.mark.parametrize("weights", ["", "https://weights.pth"])
def test_weights_that_are_no_file_are_compared_by_name(tmp_path: Path, weights: str) -> None:
    write_first_weights(tmp_path, weights)
    check_first_weights(tmp_path, weights)
    with pytest.raises(StageChangedError, match=r"than other\.pth now"):
        check_first_weights(tmp_path, "other.pth")

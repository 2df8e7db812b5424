"""The arguments of the command, and what is refused before anything is measured."""

from functools import partial

import pytest


@pytest.fixture
def call(call):
    """Run the command in this process; returns exit code, stdout and stderr."""
    return partial(call, "tools/benchmark.py")


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "--rounds", 0),
        ("data", "--batches", -1),
        ("data", "--workers", -1),
        ("evaluation", "--images", 0),
        ("evaluation", "--images", "many"),
        ("minidl", "--rounds", 0),
        ("fusion", "--rounds", 1.5),
        ("train", "--steps", 0),
        ("train", "--batch", 0),
        ("train", "--height", 0),
        ("minidl", "fusion", "--rounds", 0),
    ],
)
def test_numbers_that_measure_nothing(call, arguments):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert f"argument {arguments[-2]}: '{arguments[-1]}' is no whole number from" in err


def test_outputs_are_looked_at_first(call, tmp_path, monkeypatch):
    pytest.importorskip("detectron2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "w.pth")
    for arguments, word in (
        (("minidl", "--output", "x.md"), "the same file"),
        (("minidl", "--output", tmp_path), "is a folder"),
        (("train", "--weights", "w.pth", "--output", "link.json"), "would be overwritten"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (1, "")
        (line,) = err.splitlines()
        assert line.startswith("error: ") and word in line
    assert {p.name for p in tmp_path.iterdir()} == {"w.pth", "link.json"}

"""The arguments of the command, and what is refused before anything is measured."""

import json
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


@pytest.mark.parametrize(("content", "word"), [(None, "missing"), (b"PK\3\4", "damaged, or it")])
def test_weights_are_read_first(call, tmp_path, monkeypatch, content, word):
    pytest.importorskip("detectron2")
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "w.pth").write_bytes(content)
    code, out, err = call("train", "--weights", "w.pth")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("error: w.pth: ") and word in line


def test_outputs_are_looked_at_first(call, tmp_path, monkeypatch):
    pytest.importorskip("detectron2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "w.pth")
    (tmp_path / "README.md").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a_polygons.json").touch()
    for arguments, word in (
        (("minidl", "--output", "x.md"), "the same file"),
        (("minidl", "--output", tmp_path), "is a folder"),
        (("train", "--weights", "w.pth", "--output", "link.json"), "would be overwritten"),
        (("minidl", "--output", "README.json"), "README.md: is there, without"),
        (
            ("data", "--cityscapes", "tree", "--output", "tree/a_polygons.json"),
            "a_polygons.json: is read here too",
        ),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (1, "")
        (line,) = err.splitlines()
        assert line.startswith("error: ") and word in line
    assert {p.name for p in tmp_path.iterdir()} == {
        "w.pth",
        "link.json",
        "README.md",
        "tree",
    }


def test_every_group_is_written_as_soon_as_it_is_measured(call, tmp_path, monkeypatch):
    pytest.importorskip("detectron2")
    from d2_cityscapes.benchmark import fusion
    from d2_cityscapes.benchmark.comparison import compare

    def benchmark(settings, *, report):
        report(compare("one", "s", 1.0, {"stock": 2.0}))
        raise KeyboardInterrupt

    monkeypatch.setattr(fusion, "benchmark_fusion", benchmark)
    code, out, _ = call("fusion", "--output", tmp_path / "found.json")
    assert code == 130 and "| one | 1 s | stock | 2 s | 2x |" in out
    (found,) = json.loads((tmp_path / "found.json").read_text())["comparisons"]
    assert found["measure"] == "one"
    assert "| one |" in (tmp_path / "found.md").read_text()


def test_a_device_that_there_is_not(call, tmp_path):
    pytest.importorskip("detectron2")
    work = tmp_path / "work"
    code, out, err = call(
        "train", "--device", "gpu", "--work-dir", work, "--output", work / "x.json"
    )
    assert (code, out) == (1, "") and err.startswith("error: --device gpu: use cpu, cuda")
    assert not work.exists()

"""The command: help, and what is refused in one line."""

from functools import partial

import pytest
import torch

from d2_cityscapes.commands.gpu_check import PARTS, WAYS


@pytest.fixture
def call(call):
    """Run the command in this process; returns exit code, stdout and stderr."""
    return partial(call, "tools/gpu_check.py")


def test_help_names_the_parts(call):
    code, out, _ = call("--help")
    assert code == 0
    for word in (*PARTS, "--tiny", "--budget", "--device", "gpu_check.md", "PYTHONPATH=."):
        assert word in out


def test_the_parts_and_ways_are_those_of_the_room():
    pytest.importorskip("detectron2")
    from d2_cityscapes.benchmark.gpu import check
    from d2_cityscapes.benchmark.stock_tree import STOCK

    assert check.PARTS == PARTS and sorted(STOCK) == sorted(WAYS)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--parts", "nothing"), "invalid choice: 'nothing'"),
        (("--budget", 0), "'0' is no whole number from 1 on"),
        (("--stock", "gif"), "invalid choice: 'gif'"),
    ],
)
def test_wrong_usage(call, arguments, word):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "") and word in err


def test_no_gpu_is_one_line(call, tmp_path, monkeypatch):
    pytest.importorskip("detectron2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = call("--output", tmp_path / "new")
    (line,) = err.splitlines()
    assert (code, out) == (1, "") and line.startswith("error: ") and "--device cpu --tiny" in line
    assert not (tmp_path / "new").exists()

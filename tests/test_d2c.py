"""The one command: its subcommands, and that help comes before anything heavy is imported."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
from detectron2.engine import default_argument_parser

import d2c
from d2_cityscapes.commands.train_net import add_detectron2_arguments

SUBCOMMANDS = {
    "scenes", "prepare", "stats", "anchors", "train", "stages", "search", "predict", "evaluate",
    "report", "convert", "export", "benchmark", "doctor", "install-detectron2",
}  # fmt: skip


def leave(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        d2c.main(arguments)
    return left.value.code


@pytest.fixture(autouse=True)
def argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["d2c"])


def test_help_is_one_page_with_every_subcommand(capsys):
    d2c.main([])
    page = capsys.readouterr().out
    assert page.count("\n") < 40
    assert {line.split()[0] for line in page.splitlines() if line.startswith("  ")} >= SUBCOMMANDS


@pytest.mark.parametrize(("typed", "meant"), [("tran", "train"), ("predicts", "predict")])
def test_a_mistyped_subcommand_names_the_nearest(capsys, typed, meant):
    assert leave(typed) == 2
    assert f"nearest: {meant};" in capsys.readouterr().err


def test_a_subcommand_speaks_of_itself(capsys):
    assert leave("report", "--help") == 0
    assert "usage: d2c report" in capsys.readouterr().out


def test_the_doctor_hands_the_gpu_on(capsys):
    assert leave("doctor", "--gpu", "--help") == 0
    assert "--budget" in capsys.readouterr().out


def test_a_failure_is_one_line(capsys, tmp_path):
    assert leave("report", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_help_imports_nothing_heavy():
    """Without torch and Detectron2 each answers at once."""
    code = (
        "import sys, d2c\n"
        f"for name in {sorted(SUBCOMMANDS)}:\n"
        "    sys.argv[:] = ['d2c']\n"
        "    try:\n"
        "        d2c.main([name, '--help'])\n"
        "    except SystemExit as left:\n"
        "        assert not left.code, name\n"
        "print('heavy:', {'torch', 'detectron2', 'optuna', 'matplotlib'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: d2c") == len(SUBCOMMANDS) - 1  # the installer has its own
    assert done.stdout.endswith("heavy: set()\n")


def test_train_takes_the_arguments_of_detectron2():
    def arguments(parser: argparse.ArgumentParser) -> dict:
        return {
            action.dest: (action.option_strings, action.default, action.nargs, action.type)
            for action in parser._actions
        }

    ours = argparse.ArgumentParser()
    add_detectron2_arguments(ours)
    assert arguments(ours) == arguments(default_argument_parser())

"""TAB behind ``d2c``: what a shell is told, and that telling it imports nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from d2_cityscapes import get_cfg
from d2_cityscapes.commands.completion import config_keys
from d2_cityscapes.config import leaves


@pytest.fixture
def offered(tmp_path, repository):
    """(what is typed) -> what the shell may offer, by a Python without torch and numpy."""
    for name in ("torch", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('heavy')")

    def ask(line: str) -> list[str]:
        answer = tmp_path / "answer"
        done = subprocess.run(
            # argcomplete answers on file 8
            ["bash", "-c", f"'{sys.executable}' -c 'import d2c; d2c.main()' 8>'{answer}'"],
            cwd=tmp_path, capture_output=True, text=True,
            env={
                **os.environ, "PYTHONPATH": f"{tmp_path}:{repository}", "_ARGCOMPLETE": "1",
                "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)),
            },
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return answer.read_text().split()

    return ask


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("d2c tr", {"train"}),
        ("d2c train --config-file stage3", {"stage3.yaml"}),
        ("d2c train --config-file quick/sem", {"quick/semantic.yaml"}),
        ("d2c stages --output-dir o --config-dir full", {"full_resolution"}),
        (
            "d2c train SOLVER.BASE_LR 1 TEST.VAL_L",
            {"TEST.VAL_LOSS_PERIOD", "TEST.VAL_LOSS_DATASET"},
        ),
        ("d2c stages --output-dir o --stages 2 SOLVER.AMP.D", {"SOLVER.AMP.DTYPE"}),
        ("d2c convert sea", {"seamseg"}),
        ("d2c doctor --gpu --parts sp", {"speed"}),
        ("d2c install-detectron2 --fo", {"--force"}),
        ("d2c nothing --", set()),
    ],
)
def test_offers(offered, line, expected):
    assert set(offered(line)) == expected


def test_a_value_is_no_key_but_perhaps_a_file(offered, tmp_path):
    (tmp_path / "M.pth").touch()
    assert "M.pth" in offered("d2c train MODEL.WEIGHTS M")
    assert "M.pth" not in offered("d2c train MODEL.WEIGHTS M.pth M")


def test_keys_are_those_of_the_config():
    free = {"MODEL.UNIVERSAL.CONFIG"}  # has no keys of its own, but takes any
    assert config_keys() == {key for key, _ in leaves(get_cfg())} | free


def test_bash_completes_with_what_it_is_told_to_run(tmp_path, repository):
    command = tmp_path / "d2c"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{repository / 'd2c.py'}' \"$@\"\n")
    command.chmod(0o755)
    line = "d2c evalu"
    script = (
        f"eval \"$('{sys.executable}' -m argcomplete.scripts.register_python_argcomplete d2c)\"\n"
        f"COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_TYPE=9\n"
        '_python_argcomplete d2c; echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.stdout.split() == ["evaluate"], done.stderr

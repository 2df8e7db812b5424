"""The notebooks: as they are kept in git, and executed from top to bottom."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

import pytest

import d2c
from d2_cityscapes.shipped import find_config

nbformat = pytest.importorskip("nbformat", reason="pip install '.[dev]'")

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


class Parsed(Exception):
    """Instead of the command, once its arguments are read."""


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return nbformat.read(FOLDER / request.param, as_version=4)


def commands(notebook) -> list[str]:
    """Arguments of d2c: behind ``!`` to the end of the line, in strings, and in the text."""
    text = "\n".join(cell.source for cell in notebook.cells).replace("\\\n", "")
    lines = re.findall(r"^ *!d2c (.*)$", text, re.MULTILINE)
    strings = re.findall(r'"""\s*d2c (.*?)"""', text, re.DOTALL)
    mentioned = re.findall(r"`d2c ([^`]*)`", text)
    return [re.sub(r"\{\w+\}", "1", line) for line in lines + strings + mentioned]


def test_it_is_kept_without_what_it_printed(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_its_commands_are_understood(notebook, monkeypatch):
    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(*arguments):
        parse_args(*arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    assert len(commands(notebook)) > 5
    for line in commands(notebook):
        words = shlex.split(line)
        monkeypatch.setattr(sys, "argv", ["d2c"])
        if words[0] != "--help":
            with pytest.raises(Parsed):
                d2c.main(words)
        for config in re.findall(r"--config-file (\S+)", line):
            assert config.startswith("1/") or find_config(config).exists(), line


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, repository, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="pip install '.[dev]'")
    monkeypatch.setenv("PYTHONPATH", str(repository))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    place = tmp_path / "notebook"
    place.mkdir()
    resources = {"metadata": {"path": str(place)}}
    nbclient.NotebookClient(notebook, timeout=1800, resources=resources).execute()
    printed = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert not [out.text for out in printed if "error:" in out.get("text", "")]
    pictures = [out for out in printed if "image/png" in out.get("data", {})]
    assert len(pictures) >= 5

"""docs/tour.md works as it stands: its commands, typed one after another in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def d2c(repository: Path, tmp_path: Path) -> dict[str, str]:
    """An environment in which d2c is that of this checkout."""
    program = tmp_path / "bin" / "d2c"
    program.parent.mkdir()
    python, script = shlex.quote(sys.executable), shlex.quote(str(repository / "d2c.py"))
    program.write_text(f'#!/bin/sh\nexec {python} -W ignore {script} "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(repository)}


def panoptic_quality(results: Path) -> float:
    rows = json.loads(results.read_text())["results"]
    (value,) = [row["value"] for row in rows if row["metric"] == "PQ"]
    return value


@pytest.mark.slow
def test_its_commands_work(repository: Path, d2c: dict[str, str], tmp_path: Path) -> None:
    page = (repository / "docs" / "tour.md").read_text().partition("## On real streets")[0]
    commands = "\n".join(re.findall(r"^    (.*)$", page, re.MULTILINE))
    assert commands.count("d2c ") == 9
    folder = tmp_path / "empty"
    folder.mkdir()
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=folder, env=d2c, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in re.findall(r"`(output/[\w/.]+|stats/[\w/.]+)`", page):
        assert (folder / name).exists(), name
    for name in re.findall(r"^\| (`[^|]*`) \|", page, re.MULTILINE):
        assert all((folder / "output" / file).exists() for file in re.findall(r"`(.*?)`", name)), (
            name
        )
    scored = folder / "output" / "evaluation" / "cityscapes_shards_val" / "results.json"
    assert panoptic_quality(folder / "panoptic.json") == pytest.approx(
        panoptic_quality(scored), abs=1e-6
    )
    # road or sky
    best = max(
        row["value"] or 0
        for row in json.loads(scored.read_text())["results"]
        if row["metric"] in ("IoU-road", "IoU-sky")
    )
    assert best > 30

"""What pip is asked to install."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
from install_detectron2 import pip_process
from install_detectron2.install import install


@pytest.fixture
def held(monkeypatch) -> list[str]:
    """The lines of the constraints that pip is given."""
    lines: list[str] = []

    def call(arguments, build_tools):
        files = [Path(word) for word, last in zip(arguments[1:], arguments, strict=False)
                 if last == "--constraint"]  # fmt: skip
        lines.extend(line for file in files for line in file.read_text().splitlines())
        return 0, ""

    monkeypatch.setattr(pip_process, "_call", call)
    return lines


def test_torch_and_numpy_stay_as_they_are(held):
    import numpy
    import torch
    import torchvision

    install(Path("d.whl"), None, force=False)
    assert held == [
        f"{module.__name__}=={metadata.version(module.__name__)}"
        for module in (torch, torchvision, numpy)
    ]


def test_of_two_numpys_the_one_in_use_stays(held, tmp_path, monkeypatch):
    """As in a virtual environment over a system that has another."""
    for place, version in (("own", "1.26.4"), ("system", "2.4.6")):
        info = tmp_path / place / f"numpy-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: numpy\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "own"), *sys.path, str(tmp_path / "system")])
    install(Path("d.whl"), None, force=False)
    assert "numpy==1.26.4" in held


def test_constraints_are_passed_on(fake_pip):
    pip = fake_pip(("install", 0, "", None))
    install(Path("d.whl"), Path("pins.txt"), force=False)
    (command,) = pip.commands
    assert command.endswith("--constraint pins.txt d.whl")


def test_force_reinstalls_the_wheel_alone(fake_pip):
    pip = fake_pip(("install", 0, "", None), ("--force-reinstall", 0, "", None))
    install(Path("d.whl"), None, force=True)
    first, second = pip.commands
    assert "--force-reinstall" not in first
    assert second.endswith("--force-reinstall --no-deps d.whl")

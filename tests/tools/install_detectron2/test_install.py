"""What pip is asked to install."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from install_detectron2 import pip_process
from install_detectron2.install import install


def test_torch_and_numpy_stay_as_they_are(monkeypatch):
    import numpy
    import torch
    import torchvision

    held = []

    def call(arguments, build_tools):
        files = [Path(word) for word, last in zip(arguments[1:], arguments, strict=False)
                 if last == "--constraint"]  # fmt: skip
        held.extend(line for file in files for line in file.read_text().splitlines())
        return 0, ""

    monkeypatch.setattr(pip_process, "_call", call)
    install(Path("d.whl"), None, force=False)
    assert held == [
        f"{module.__name__}=={metadata.version(module.__name__)}"
        for module in (torch, torchvision, numpy)
    ]


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

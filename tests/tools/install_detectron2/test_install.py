"""What pip is asked to install."""

from __future__ import annotations

from pathlib import Path

from install_detectron2.install import install


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

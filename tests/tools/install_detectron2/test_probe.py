"""What counts as an installed Detectron2."""

from __future__ import annotations

import pytest
from install_detectron2.probe import Found, find_detectron2, has_module


@pytest.mark.parametrize(
    "version, enough", [("0.5", False), ("0.6", True), ("0.6+cu113", True), ("1.0", True)]
)
def test_version_is_compared_by_number(version, enough):
    assert Found(version, "").new_enough is enough


def test_folder_in_the_current_directory_is_no_installation(tmp_path, monkeypatch):
    for place, version in (("installed", "0.6"), ("cwd", "9.9")):
        package = tmp_path / place / "detectron2"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"__version__ = {version!r}\n")
        for part in ("engine", "modeling"):
            (package / f"{part}.py").write_text("")
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    assert find_detectron2() == Found("0.6", str(tmp_path / "installed/detectron2"))


def test_module_is_looked_for_outside_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "lies_about.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert not has_module("lies_about")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert has_module("lies_about")

"""The wheel that is made of an edited tree."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from install_detectron2.errors import InstallError
from install_detectron2.source import add_files, apply_edits
from install_detectron2.wheel import build_wheel


def _build(fake_tree: Callable[[Path], Path], folder: Path) -> Path:
    root = fake_tree(folder / "tree")
    apply_edits(root)
    add_files(root)
    return build_wheel(root, folder / "wheels")


def test_wheel_is_complete_and_its_record_is_right(tmp_path, fake_tree):
    wheel = _build(fake_tree, tmp_path)
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    assert [p.name for p in wheel.parent.iterdir()] == [wheel.name]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for project in ("point_rend", "deeplab", "panoptic_deeplab"):
            assert f"detectron2/projects/{project}/__init__.py" in names
        assert "detectron2/model_zoo/configs/COCO-Detection/some.yaml" in names
        assert "detectron2/utils/missing.py" in names
        info = "detectron2-0.6.dist-info"
        record = archive.read(f"{info}/RECORD").decode().splitlines()
        assert {line.split(",")[0] for line in record} == names
        for line in record:
            name, digest, size = line.split(",")
            if name.endswith("RECORD"):
                continue
            data = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
            assert digest == "sha256=" + expected.rstrip("=") and int(size) == len(data)
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "Name: detectron2\nVersion: 0.6\n" in metadata
        assert "Requires-Dist: fvcore>=0.1.5,<0.1.6\n" in metadata
        for dropped in ("black", "future", "<0.1.10", "opencv", "panopticapi", "://"):
            assert dropped not in metadata.split("\n\n")[0].replace("https://github.com", "")
        assert "numpy 1.24" in archive.read(f"{info}/COMPATIBILITY_EDITS.txt").decode()


def test_same_tree_gives_the_same_wheel(tmp_path, fake_tree):
    assert (
        _build(fake_tree, tmp_path / "a").read_bytes()
        == _build(fake_tree, tmp_path / "b").read_bytes()
    )


def test_pip_accepts_the_wheel(tmp_path, fake_tree):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--disable-pip-version-check", "--target", str(tmp_path / "site")]
    subprocess.run([*command, str(_build(fake_tree, tmp_path))], check=True)
    assert (tmp_path / "site/detectron2/projects/deeplab/__init__.py").is_file()


def test_incomplete_archive_is_refused(tmp_path, fake_tree):
    root = fake_tree(tmp_path)
    (root / "projects/DeepLab/deeplab/__init__.py").unlink()
    with pytest.raises(InstallError, match="no package projects/DeepLab/deeplab"):
        build_wheel(root, tmp_path / "wheels")

"""The table of edits: each is sound, and together they apply once and only once."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from install_detectron2.edits import ADDED_FILES, EDITS, Edit
from install_detectron2.errors import InstallError
from install_detectron2.source import add_files, apply_edits


def test_every_edit_changes_something_and_says_why():
    for edit in EDITS:
        assert edit.old and edit.old != edit.new and edit.count >= 1
        assert edit.cause and "\n" not in edit.reason
    keys = [(edit.path, edit.old) for edit in EDITS]
    assert len(set(keys)) == len(keys)


def test_every_edit_says_since_which_release():
    releases = {edit.since for edit in EDITS} - {""}
    for release in releases:
        assert re.fullmatch(r"(numpy|Pillow|torch|Python|setuptools) \d+(\.\d+)?", release)
    assert {release.split()[0] for release in releases} >= {"numpy", "Pillow", "torch"}


def test_reason_is_a_sentence_about_the_release():
    assert Edit("a.py", "a", "b", "removed it", "numpy 1.24").reason == "numpy 1.24 removed it"
    assert Edit("a.py", "a", "b", "no compiler").reason == "no compiler"


def test_whole_table_applies_once_and_only_once(tmp_path, fake_tree):
    root = fake_tree(tmp_path)
    apply_edits(root)
    add_files(root)
    for path in {edit.path for edit in EDITS}:
        assert "np.int" not in (root / path).read_text()
    with pytest.raises(InstallError, match="edit of"):
        apply_edits(root)
    with pytest.raises(InstallError, match="exists already"):
        add_files(root)


def test_stand_ins_fail_on_use_with_the_remedy(tmp_path, monkeypatch):
    (added,) = ADDED_FILES
    path = tmp_path / Path(added.path).name
    path.write_text(added.text)
    monkeypatch.setitem(sys.modules, "cv2", None)  # importing it fails
    spec = importlib.util.spec_from_file_location("stand_ins", path)
    assert spec is not None and spec.loader is not None
    missing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(missing)
    with pytest.raises(ImportError, match=r"imread needs cv2, .*: pip install opencv-python"):
        _ = missing.cv2.imread
    with pytest.raises(ImportError, match=r"nms_rotated needs detectron2\._C, .* pure-Python"):
        _ = missing._C.nms_rotated
    assert not hasattr(missing.cv2, "__path__")

"""Unpacking the archive and editing its tree, and what is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from install_detectron2.edits import Edit
from install_detectron2.errors import InstallError
from install_detectron2.source import apply_edits, unpack


def test_edit_replaces_its_text_and_reports_the_file(tmp_path):
    path = tmp_path / "a/b.py"
    path.parent.mkdir()
    path.write_text("x = np.int\ny = np.int\n")
    edits = [Edit("a/b.py", "np.int\n", "int\n", "numpy", count=2)]
    assert apply_edits(tmp_path, edits) == ["a/b.py"]
    assert path.read_text() == "x = int\ny = int\n"


@pytest.mark.parametrize("count", [1, 3])
def test_edit_with_another_count_fails_loudly(tmp_path, count):
    path = tmp_path / "b.py"
    path.write_text("np.int np.int")
    with pytest.raises(InstallError, match=rf"b\.py \(why\).*{count} times 'np.int', found 2"):
        apply_edits(tmp_path, [Edit("b.py", "np.int", "int", "why", count=count)])
    assert path.read_text() == "np.int np.int"


def test_edit_of_a_missing_file_names_it(tmp_path):
    with pytest.raises(InstallError, match=r"no/such\.py: there is no such file"):
        apply_edits(tmp_path, [Edit("no/such.py", "a", "b", "why")])


def _archive(path: Path, names: list[str], link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return path


def test_unpack_returns_the_top_folder(tmp_path):
    archive = _archive(tmp_path / "a.tar.gz", ["top/a.py", "top/b/c.py"])
    assert unpack(archive, tmp_path / "out") == tmp_path / "out/top"
    assert (tmp_path / "out/top/b/c.py").read_bytes() == b"x"


@pytest.mark.parametrize("names, link", [(["top/../../evil"], ""), (["/evil"], ""), ([], "top/l")])
def test_unpack_refuses_what_leaves_the_folder(tmp_path, names, link):
    archive = _archive(tmp_path / "a.tar.gz", names, link)
    with pytest.raises(InstallError, match="refusing to unpack"):
        unpack(archive, tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


def test_unpack_refuses_two_top_folders(tmp_path):
    archive = _archive(tmp_path / "a.tar.gz", ["one/a.py", "two/a.py"])
    with pytest.raises(InstallError, match=r"expected one top folder, found \['one', 'two'\]"):
        unpack(archive, tmp_path / "out")

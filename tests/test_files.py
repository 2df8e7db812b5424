"""A file is whole or not there."""

from __future__ import annotations

import errno

import pytest

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import write_atomically


def test_chunks_are_joined_and_folders_made(tmp_path):
    write_atomically(tmp_path / "a" / "b.bin", [b"one", b"two"])
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"onetwo"


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "x.bin"
    write_atomically(path, [b"old"])

    def chunks():
        yield b"new"
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError):
        write_atomically(path, chunks())
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(D2CityscapesError, match=r"x.bin: cannot be written \(No space left"):
        write_atomically(tmp_path / "x.bin", [b"x"])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(D2CityscapesError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "x.bin", [b"x"])

"""A file is whole or not there; a folder has one writer."""

from __future__ import annotations

import errno

import pytest

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import (
    check_beside,
    check_outputs,
    file_below,
    file_sha256,
    lock_folder,
    open_atomically,
    remove_temporaries,
    write_atomically,
    write_json,
)


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


def test_an_open_file_can_be_patched_and_read_back(tmp_path):
    path = tmp_path / "x.bin"
    with open_atomically(path) as file:
        file.write(b"....body")
        file.seek(0)
        file.write(b"head")
        file.seek(0)
        assert file.read() == b"headbody"
        assert not path.exists()
    assert path.read_bytes() == b"headbody"


def test_json_ends_with_a_line_and_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  1,\n  null\n ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))


def test_checksum(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    names = [".a.bin.123.tmp", ".b.json.7.tmp", "a.bin", ".a.bin", ".a.txt.1.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    remove_temporaries(tmp_path, ("*.bin", "b.json"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[2:])


def test_a_locked_folder_refuses_a_second_writer(tmp_path):
    with lock_folder(tmp_path) as locked:
        assert locked
        with pytest.raises(D2CityscapesError, match="another process is writing here"):
            lock_folder(tmp_path).__enter__()
    with lock_folder(tmp_path) as locked:
        assert locked


def test_a_locked_folder_appears_and_goes_again_if_empty(tmp_path):
    with lock_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())
    with lock_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "x").write_text("")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x"]


def test_a_file_system_without_locks_goes_without(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock_folder(tmp_path) as locked:
        assert not locked


def test_a_folder_to_lock_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(D2CityscapesError, match="file/x: cannot be made"):
        lock_folder(tmp_path / "file" / "x").__enter__()
    with pytest.raises(D2CityscapesError, match="file: cannot be made"):
        lock_folder(tmp_path / "file").__enter__()


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a.png",
        "a/../../b.png",
        "/etc/a.png",
        "//server/a.png",
        "C:a.png",
        "a\\..\\..\\b.png",
        "a\0.png",
        "a\ud800.png",
        None,
        3,
    ],
)
def test_a_name_from_elsewhere_stays_in_its_folder(tmp_path, name):
    with pytest.raises(D2CityscapesError, match="not the name of a file in this folder"):
        file_below(tmp_path, name)


@pytest.mark.parametrize("name", ["a.png", "frankfurt/a.png", "a..b.png", "\u00fc 1.png"])
def test_usual_names_are_taken(tmp_path, name):
    assert file_below(tmp_path, name) == tmp_path / name


def test_no_output_is_an_input(tmp_path):
    """By any of its names: the same path in other words, a link, a hard link."""
    path = tmp_path / "in.json"
    path.write_text("{}")
    (tmp_path / "link.json").symlink_to(path)
    (tmp_path / "hard.json").hardlink_to(path)
    (tmp_path / "a").mkdir()
    for output in (path, tmp_path / "a" / ".." / "in.json", "link.json", "hard.json"):
        with pytest.raises(D2CityscapesError, match=r"is read here too \(as .*in\.json\)"):
            check_outputs([tmp_path / "out.json", tmp_path / output], [tmp_path / "none", path])
    check_outputs([tmp_path / "out.json"], [path])
    assert path.read_text() == "{}"


def test_what_lies_beside_a_new_output_stays(tmp_path):
    new, beside = tmp_path / "street.json", tmp_path / "street.png"
    check_beside(new, beside)
    beside.touch()
    with pytest.raises(D2CityscapesError, match=r"street\.png: is there, without .*street\.json"):
        check_beside(new, tmp_path / "other.png", beside)
    new.touch()  # of an earlier run, as its neighbour is
    check_beside(new, beside)


def test_no_two_outputs_are_one_file(tmp_path):
    (tmp_path / "x").touch()
    (tmp_path / "y").symlink_to(tmp_path / "x")
    for names in (("a.png", "a.png"), ("a.md", "./a.md"), ("A.MD", "A.md"), ("x", "y")):
        with pytest.raises(D2CityscapesError, match="the same file"):
            check_outputs([tmp_path / name for name in names])
    check_outputs([tmp_path / "a.json", tmp_path / "a.md"])


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for output, word in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "out.json", "cannot be written to"),
        ("/proc/none/out.json", "cannot be written to"),
    ):
        with pytest.raises(D2CityscapesError, match=word):
            check_outputs([output])
    check_outputs([tmp_path / "new" / "out.json"])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

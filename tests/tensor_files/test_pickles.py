"""Pickles that want more than arrays of numbers: every instruction, every trick, refused."""

from __future__ import annotations

import contextlib
import copyreg
import pickle
import pickletools
import struct
import tracemalloc
import warnings
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_cityscapes.tensor_files import TensorFileError, read_tensor_file

UNICODE = b"X" + struct.pack("<I", 5) + b"mkdir"


@pytest.fixture
def read(tmp_path):
    """(bytes) -> what is read from a .pkl with them."""

    def load(content: bytes):
        path = tmp_path / "file.pkl"
        path.write_bytes(content)
        return read_tensor_file(path)

    return load


def _called(name: str, *arguments: str, module: str = "posix") -> bytes:
    return f"c{module}\n{name}\n(".encode() + b"".join(
        b"X" + struct.pack("<I", len(text)) + text.encode() for text in arguments
    )


# Instruction -> a pickle in which it would run or make something.
TRICKS = {
    "GLOBAL and REDUCE": lambda mark: _called("mkdir", mark) + b"tR.",
    "STACK_GLOBAL": lambda mark: (
        b"X\x05\0\0\0posix" + UNICODE + b"\x93(X" + struct.pack("<I", len(mark)) + mark.encode()
        + b"tR."
    ),
    "INST": lambda mark: b"(X" + struct.pack("<I", len(mark)) + mark.encode() + b"iposix\nmkdir\n.",
    "OBJ": lambda mark: b"(" + _called("mkdir", mark).replace(b"\n(", b"\n") + b"o.",
    "NEWOBJ": lambda _: b"ccollections\nOrderedDict\n)\x81.",
    "NEWOBJ_EX": lambda _: b"ccollections\nOrderedDict\n)}\x92.",
    "EXT1": lambda mark: b"\x82\x71(X" + struct.pack("<I", len(mark)) + mark.encode() + b"tR.",
    "PERSID": lambda _: b"Pmkdir\n.",
    "BINPERSID": lambda _: UNICODE + b"Q.",
    "a nested REDUCE": lambda mark: (
        b"ccollections\nOrderedDict\n(](" + _called("mkdir", mark) + b"tRetR."
    ),
    "BUILD with __setstate__": lambda _: b"ccollections\nOrderedDict\n}U\x0c__setstate__K\x01sb.",
    "BUILD of a function": lambda _: b"c_codecs\nencode\nN}U\x0c__defaults__K\x01s\x86b.",
    "BUILD of a type": lambda _: b"cnumpy\ndtype\nN}U\x09set_stateK\x01s\x86b.",
    "an attribute of what is known": lambda _: (
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__base__\x93."
    ),
    "EMPTY_SET": lambda _: b"\x8f.",
    "FROZENSET": lambda _: b"(\x91.",
    "NEXT_BUFFER": lambda _: b"\x80\x05\x97.",
    "READONLY_BUFFER": lambda _: b"N\x98.",
    "items of no dict": lambda _: b"]K\0K\0s.",
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_nothing_is_run_or_made(tmp_path, read, name):
    mark = tmp_path / "mark"
    copyreg.add_extension("posix", "mkdir", 0x71)
    try:
        with pytest.raises(TensorFileError) as caught:
            read(TRICKS[name](str(mark)))
    finally:
        copyreg.remove_extension("posix", "mkdir", 0x71)
    assert "cannot be read as weights" in str(caught.value) and "\n" not in str(caught.value)
    assert not mark.exists()


def test_the_tricks_would_work(tmp_path):
    for number, name in enumerate(("GLOBAL and REDUCE", "STACK_GLOBAL", "INST", "a nested REDUCE")):
        mark = tmp_path / str(number)
        with contextlib.suppress(TypeError):  # of what OrderedDict makes of None
            pickle.loads(TRICKS[name](str(mark)))
        assert mark.is_dir(), name


def test_every_instruction_is_known_or_refused(read):
    """None that a later Python may add is obeyed unseen."""
    for opcode in pickletools.opcodes:
        try:
            read(opcode.code.encode("latin1") + b".")
        except TensorFileError:
            continue
        assert opcode.name not in ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ")


@pytest.mark.parametrize(
    "kind",
    [np.array([None]), np.array(["text"]), np.zeros(1, [("a", "f4")]), np.array(["2026"], "M8[D]")],
    ids=str,
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_are_of_numbers(read, kind, protocol):
    with pytest.raises(TensorFileError, match="an array of something else than numbers"):
        read(pickle.dumps(kind, protocol))


def test_bytes_never_become_pointers(read):
    """numpy believes the state of a type: here that eight bytes are a Python object."""
    fields = {"a": (np.dtype("O"), 0)}
    state = (3, "|", None, ("a",), fields, 8, 1, 0)

    class Forged:
        def __reduce__(self):
            return np.dtype, ("V8", False, True), state

    with pytest.raises(TensorFileError, match="an array of something else than numbers"):
        read(pickle.dumps({"a": Forged()}, 2))
    with pytest.raises(TensorFileError):
        read(pickle.dumps(Forged(), 2).replace(b"V8", b"f8"))


@pytest.mark.parametrize(
    "content",
    [
        b"T" + struct.pack("<i", 2**31 - 1) + b"a.",
        b"\x8d" + struct.pack("<Q", 2**40) + b"a.",
        b"\x8e" + struct.pack("<Q", 2**33) + b"a.",
        b"\x96" + struct.pack("<Q", 2**33) + b"a.",
        b"\x95" + struct.pack("<Q", 2**33) + b"N.",
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"a.",
        b"Nr\xff\xff\xff\xff" + b"\x8a\xff.",
        b"c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",
        b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",
        pickle.dumps(np.zeros(1000), 2).replace(struct.pack("<H", 1000), b"\xff\xff"),
    ],
    ids=lambda content: content[:4].hex(),
)
def test_a_number_in_a_file_allocates_nothing(read, content):
    tracemalloc.start()
    try:
        with pytest.raises(TensorFileError):
            read(content)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_deep_and_tangled_ones_end(read):
    """To hash a tuple inside of 100 000 others would take all of the stack, and one that is twice
    in each of 100 others forever."""
    deep, tangled = b"N" + b"\x85" * 100_000, b"N" + b"2\x86" * 100
    for bomb in (deep, tangled):
        for content in (b"}" + bomb + b"Ns.", b"(" + bomb + b"Nd.", b"}(" + bomb + b"Nu."):
            with pytest.raises(TensorFileError, match="key of type tuple"):
                read(content)
    assert read(b"N" + b"\x85" * 1000 + b"0N.") is None
    with pytest.raises(TensorFileError, match="key of type tuple"):
        read(b"ccollections\nOrderedDict\n]]" + tangled + b"aNaa\x85R.")


@given(st.binary(max_size=40), st.integers(0, 300))
@settings(max_examples=150, deadline=None, database=None)
def test_damage_is_one_line(tmp_path_factory, noise, place):
    path = tmp_path_factory.getbasetemp() / "noise.pkl"
    whole = pickle.dumps({"model": OrderedDict(a=np.arange(4.0), b=np.float32(1))}, 2)
    path.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_tensor_file(path)
        except TensorFileError as error:
            assert "\n" not in str(error)


def test_the_real_thing_is_read_by_the_module_that_refuses(read):
    """Old numpy's pickles, of Python 2: a state that is text."""
    old = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01"
        b"K\x02\x85cnumpy\ndtype\nU\x02f4K\0K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\0tb\x89U\x08\0\0\x80?\0\0\0@tb."
    )
    np.testing.assert_array_equal(read(old), np.float32([1, 2]))

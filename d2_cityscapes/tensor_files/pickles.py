"""Pickles of numpy arrays and plain values, as in Detectron2's model zoo, and of nothing else.

A pickle is a program. Of its instructions those stay that make plain values, lists, dicts and
tuples, and what it may call are the functions of this module alone: they make arrays of numbers.
So a file can neither run anything nor give numpy states that numpy would believe (types whose bytes
are taken for pointers), and it takes no more memory than its own size.
"""

from __future__ import annotations

import codecs
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, ClassVar

import numpy as np

__all__ = ["load_arrays"]

_NUMBERS = re.compile(r"[biufc]\d{1,2}|\?")  # numpy's names of types of numbers, e.g. "f4"
_ORDERS = ("<", ">", "=", "|")
_KEYS = (str, int, bytes)


def load_arrays(file: BinaryIO) -> Any:
    """The first pickle of an open file, of any protocol, of Python 2 and 3, numpy 1 and 2.

    Raises:
        Exception: of any kind: it is damaged, or holds anything else than arrays of numbers, plain
            values, lists, tuples and dicts with plain keys.
    """
    return _ArrayUnpickler(_Bounded(file), encoding="latin1").load()


class _Bounded:
    """An open file that no number in it makes read, and so allocate, more than there is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, os.fstat(file.fileno()).st_size - file.tell()

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise EOFError("it ends too soon")
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


class _Type:
    """A numpy type of numbers, made in the two steps in which numpy pickles it."""

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
            raise pickle.UnpicklingError("an array of something else than numbers")
        self.numpy = np.dtype(name)

    def set_state(self, state: Any) -> None:
        order, *rest = state[1:5]
        if order not in _ORDERS or rest != [None, None, None]:
            raise pickle.UnpicklingError("an array of something else than numbers")
        self.numpy = self.numpy.newbyteorder(order)


class _Array(np.ndarray):
    """An array, made in two steps as well."""

    __slots__ = ()

    def set_state(self, state: Any) -> None:
        _, shape, kind, by_columns, data = state
        if not isinstance(kind, _Type) or not isinstance(data, (bytes, str)):  # str of Python 2
            raise pickle.UnpicklingError("an array of something else than numbers")
        whole: Any = (1, shape, kind.numpy, bool(by_columns), data)
        super().__setstate__(whole)


def _reconstruct(kind: Any, shape: Any, letter: Any) -> _Array:
    """How numpy begins an array, whose state brings shape and type."""
    return _Array(0)


def _from_buffer(
    data: Any, kind: Any, shape: Any, order: Any, axis_order: Any = None
) -> np.ndarray:
    """How protocol 5 writes an array without gaps; axis_order is numpy's since 2.3."""
    if not isinstance(data, (bytes, bytearray)) or not isinstance(kind, _Type):
        raise pickle.UnpicklingError("an array of something else than numbers")
    array = np.frombuffer(data, dtype=kind.numpy)
    if axis_order is not None:
        return array.reshape(shape).transpose(axis_order)
    return array.reshape(shape, order=order)


def _scalar(kind: Any, data: Any) -> np.generic:
    data = _encoded(data) if isinstance(data, str) else data
    if not isinstance(data, bytes) or not isinstance(kind, _Type):
        raise pickle.UnpicklingError("something else than a number")
    return np.frombuffer(data, kind.numpy, 1)[0]


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 writes bytes; `codecs.encode` would take any codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return codecs.latin_1_encode(text)[0]


def _ordered(items: Iterable[Any] = ()) -> OrderedDict[Any, Any]:
    """Python 2 gives the items here."""
    pairs = [(key, value) for key, value in items]
    _check_keys(key for key, _ in pairs)
    return OrderedDict(pairs)


def _check_keys(keys: Iterable[Any]) -> None:
    """To hash a tuple of tuples of ... may take forever, or all of the stack."""
    for key in keys:
        if type(key) not in _KEYS:
            raise pickle.UnpicklingError(f"a dict with a key of type {type(key).__name__}")


# Under numpy's names before numpy 2. The class of arrays is only ever named, and never called.
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): lambda: b"",  # bytes(n) would be n of them
    ("collections", "OrderedDict"): _ordered,
}

# Instructions that are obeyed: plain values, lists, tuples, dicts, the memo, names and calls.
_KNOWN = b"".join(
    getattr(pickle, name)
    for name in (
        "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE",
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
        "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
        "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
        "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
        "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
        "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
    )
)  # fmt: skip


_DISPATCH: dict[int, Any] = pickle._Unpickler.dispatch


def _unknown(unpickler: Any) -> None:
    raise pickle.UnpicklingError("an instruction that arrays and plain values do not need")


class _ArrayUnpickler(pickle._Unpickler):  # in Python, so that single instructions can be replaced
    dispatch: ClassVar[dict[int, Any]] = {
        code: do if code in _KNOWN else _unknown for code, do in _DISPATCH.items()
    }

    # of the base, which says nothing of types
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _FUNCTIONS[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None

    def load_build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, (_Type, _Array)):
            made.set_state(state)
        elif not isinstance(made, OrderedDict):  # whose attributes nobody asks for
            raise pickle.UnpicklingError(f"a state for something of type {type(made).__name__}")

    def load_dict(self) -> None:
        self._set_items({}, self.pop_mark())

    def load_setitem(self) -> None:
        *_, key, value = self.stack[-3:]
        del self.stack[-2:]
        self._set_items(self.stack.pop(), [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._set_items(self.stack.pop(), items)

    def _set_items(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict):
            raise pickle.UnpicklingError(f"items for something of type {type(target).__name__}")
        _check_keys(items[::2])
        target.update(zip(items[::2], items[1::2], strict=True))
        self.append(target)

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

"""``.safetensors``: what is written is read, with plain reads, and a hostile header is refused."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.tensor_files import (
    TensorFileError,
    read_safetensors,
    read_tensor_file,
    read_texts,
    write_safetensors,
)

TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def _file(path: Path, header: object, data: bytes = b"\0" * 8, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_what_is_written_is_read(tmp_path):
    shared = torch.arange(6.0)
    tensors = {
        "columns": shared.reshape(2, 3).t(),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4, dtype=torch.float16),
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(3).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "tied": shared,
    }
    path, texts = tmp_path / "new" / "a.safetensors", {"b": "ä\n", "a": "{}"}
    write_safetensors(path, tensors, texts)
    for found in (read_safetensors(path)[0], read_tensor_file(path), load_file(path)):
        assert found.keys() == tensors.keys()
        assert all(found[k].dtype == x.dtype and found[k].equal(x) for k, x in tensors.items())
    assert read_safetensors(path)[1] == read_texts(path) == texts


def test_the_same_content_is_the_same_file(tmp_path):
    tensors, texts = {"a": torch.ones(2), "b": torch.ones(3)}, {k: k for k in "abcdefgh"}
    write_safetensors(tmp_path / "1.safetensors", tensors, texts)
    backwards = dict(reversed(texts.items()))
    write_safetensors(tmp_path / "2.safetensors", dict(reversed(tensors.items())), backwards)
    one, two = ((tmp_path / f"{k}.safetensors").read_bytes() for k in (1, 2))
    assert one == two


def test_what_the_format_does_not_have(tmp_path):
    path = tmp_path / "a.safetensors"
    for tensor in (torch.ones(2).to_sparse(), torch.ones(2, dtype=torch.complex128)):
        with pytest.raises(TensorFileError, match=r"a.safetensors: x: .safetensors has no "):
            write_safetensors(path, {"x": tensor}, {})
    assert not path.exists()


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, disk_of):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": torch.ones(3)}, {})
    before = path.read_bytes()
    with disk_of(100_000), pytest.raises(D2CityscapesError) as caught:
        write_safetensors(path, {"a": torch.zeros(100, 1000)}, {})
    assert str(caught.value) == f"{path}: cannot be written (File too large)"
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


# --- reading whole ---


def test_tensors_outlive_their_file(tmp_path):
    """Of a memory map, the tensors of a file that is cut off kill the process."""
    path, tensor = tmp_path / "a.safetensors", torch.randn(300_000)
    write_safetensors(path, {"a": tensor}, {})
    found = read_tensor_file(path)["a"]
    if sys.platform == "linux":
        assert str(path) not in Path("/proc/self/maps").read_text()
    with path.open("r+b") as file:
        file.truncate(0)
    assert found.equal(tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_file_is_in_the_memory_once(tmp_path):
    path, size = tmp_path / "a.safetensors", 1 << 22
    write_safetensors(path, {f"{k}": torch.zeros(size // 4) for k in range(16)}, {})
    read_tensor_file(path)  # whatever is only loaded once
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    found = read_tensor_file(path)
    assert len(found) == 16
    assert _peak() - before < 18 * size  # of 16: not twice


def _peak() -> int:
    """Bytes that this process has had at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


# --- hostile headers ---


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"a": TENSOR}, 2**60),
        ({"a": TENSOR}, 99_000_000),
        ({"a": TENSOR}, 10_000),
        ({"a": TENSOR}, 0),
        ({"a": TENSOR, "b": TENSOR}, None),
        ({"a": TENSOR | {"data_offsets": [8, 16]}}, None),
        ({"a": TENSOR | {"data_offsets": [0, 4]}}, None),
        ({"a": TENSOR | {"data_offsets": [8, 0]}}, None),
        ({"a": TENSOR | {"data_offsets": [-8, 0]}}, None),
        ({"a": TENSOR | {"data_offsets": [0, 2**70]}}, None),
        ({"a": TENSOR | {"shape": [-2]}}, None),
        ({"a": TENSOR | {"shape": [3]}}, None),
        ({"a": TENSOR | {"shape": [2**63, 2]}}, None),
        ({"a": TENSOR | {"shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}, None),
        ({"a": TENSOR | {"dtype": "O"}}, None),
        ({"a": TENSOR | {"dtype": "F4"}}, None),
        ({"a": "text"}, None),
        ({"__metadata__": {"a": 1}, "a": TENSOR}, None),
        ({"__metadata__": {"a": {"b": "c"}}, "a": TENSOR}, None),
        (b'{"a":' * 100_000, None),
        (b"[" * 100_000, None),
        (b"\xff\xfe" * 40, None),
        (b"", None),
        (b'{"a": %b, "a": %b}' % ((json.dumps(TENSOR).encode(),) * 2), None),
        (b'{"__metadata__": {"x": "1", "x": "2"}, "a": %b}' % json.dumps(TENSOR).encode(), None),
    ],
)
def test_a_hostile_header_is_one_line(tmp_path, header, length):
    path = _file(tmp_path / "a.safetensors", header, length=length)
    with pytest.raises(TensorFileError) as caught:
        read_tensor_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be read as weights: damaged") and "\n" not in message


def test_a_header_of_a_hundred_megabytes_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000))
        file.truncate(100_000_000)  # of zeros, which the disk need not hold
    with pytest.raises(TensorFileError, match="its header would have 99000000 bytes"):
        read_tensor_file(path)


_numbers = st.integers(-(2**65), 2**65) | st.integers(-1, 20)
_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "F4", "F8_E8M0", "I64", "x"]),
        "shape": st.lists(_numbers, max_size=3),
        "data_offsets": st.lists(_numbers, min_size=1, max_size=3),
    }
)


@given(
    st.dictionaries(st.text(max_size=3), _entries | st.none(), max_size=3).map(
        lambda header: json.dumps(header).encode()
    )
    | st.binary(max_size=60),
    st.none() | st.integers(0, 2**64 - 1),
    st.binary(max_size=20),
)
@settings(max_examples=150, deadline=None, database=None)
def test_any_header_is_read_as_it_says_or_refused(tmp_path_factory, header, length, data):
    path = _file(tmp_path_factory.getbasetemp() / "a.safetensors", header, data, length)
    try:
        found = read_tensor_file(path)
    except TensorFileError as error:
        assert "\n" not in str(error)
    else:
        assert sum(x.numel() * x.element_size() for x in found.values()) == len(data)


def test_a_writer_of_others_is_read(tmp_path):
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "a.safetensors", {"format": "pt"})
    assert read_texts(tmp_path / "a.safetensors") == {"format": "pt"}
    assert read_tensor_file(tmp_path / "a.safetensors")["a"].tolist() == [[0, 1, 2], [3, 4, 5]]

"""Files of tensors: nothing in them is run, and none is written by halves."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.tensor_files import TensorFileError, read_tensor_file, write_tensor_file


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pyth", ""])
@pytest.mark.parametrize("saved_by", ["pickle", "torch", "torch, as before 1.6"])
def test_nothing_is_run(tmp_path, suffix, saved_by):
    path, mark = tmp_path / f"evil{suffix}", tmp_path / "mark"
    content = {"model": {"a": np.zeros(3)}, "trainer": Evil(mark)}
    if saved_by == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=saved_by == "torch")
    if (suffix, saved_by) == (".pkl", "torch, as before 1.6"):
        assert isinstance(read_tensor_file(path), int)  # the first of several pickles
    else:
        with pytest.raises(TensorFileError) as caught:
            read_tensor_file(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: cannot be read as weights") and "\n" not in message
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_values_are_read(tmp_path, protocol):
    path = tmp_path / "weights.pkl"
    content = OrderedDict(a=np.arange(6.0).reshape(2, 3), b=np.float32(2), c=["x", 1, None, b"y"])
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_tensor_file(path)
    assert list(found) == ["a", "b", "c"] and found["c"] == content["c"]
    np.testing.assert_array_equal(found["a"], content["a"])


def test_safetensors_are_read_by_their_ending(tmp_path):
    path, content = tmp_path / "model.safetensors", {"a": torch.arange(6.0).reshape(2, 3)}
    save_file(content, path)
    assert torch.equal(read_tensor_file(path)["a"], content["a"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TensorFileError, match="cannot be read as weights"):
        read_tensor_file(path)


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, disk_of):
    path = tmp_path / "model.pth"
    write_tensor_file(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    for _ in range(2):
        with disk_of(100_000), pytest.raises(D2CityscapesError) as caught:
            write_tensor_file(path, {"a": torch.zeros(100, 1000)})
        assert str(caught.value) == f"{path}: cannot be written (File too large)"
        assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]
        assert path.read_bytes() == before


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_tensor_file(tmp_path / "none.pth")

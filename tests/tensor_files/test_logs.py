"""Logs of mmengine beside weights: read past, and nothing of them is made."""

from __future__ import annotations

import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from d2_cityscapes.tensor_files import TensorFileError, read_tensor_file
from d2_cityscapes.tensor_files.logs import Unread

MODULE = "mmengine.logging.history_buffer"


class HistoryBuffer:
    """As mmengine keeps the losses of a training."""

    def __init__(self) -> None:
        self.max_length = 1000000
        self._log_history = np.array([1.5, np.float64(0.5)])
        self._count_history = np.array([1, 1])


class Call:
    """Unpickled, it calls something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Write a checkpoint where mmengine is there; it is not where it is read."""

    def write(**beside):
        path = tmp_path / "epoch_12.pth"
        with monkeypatch.context() as patch:
            for name in ("mmengine", "mmengine.logging", MODULE):
                patch.setitem(sys.modules, name, types.ModuleType(name))
            for each in (HistoryBuffer, called):
                patch.setattr(sys.modules[MODULE], each.__name__, each, raising=False)
                patch.setattr(each, "__module__", MODULE)
            content = {"state_dict": {"a": torch.arange(3.0)}, "meta": {"epoch": 12}, **beside}
            torch.save(content, path)
        return path

    return write


def called(path):
    os.mkdir(path)


def test_the_weights_are_read_and_the_logs_not(save):
    hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "resumed_keys": {"train/loss": True}}
    found = read_tensor_file(save(message_hub=hub))
    assert torch.equal(found["state_dict"]["a"], torch.arange(3.0))
    assert found["meta"] == {"epoch": 12}
    buffer = found["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(buffer, Unread) and not hasattr(buffer, "max_length")


def test_what_is_named_as_if_of_mmengine_is_not_called(save, tmp_path):
    found = read_tensor_file(save(message_hub=Call(called, str(tmp_path / "mark"))))
    assert isinstance(found["message_hub"], Unread)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("function", [os.mkdir, os.system, pickle.loads, eval])
def test_anything_else_beside_logs_is_refused(save, tmp_path, function):
    argument = b"c" if function is pickle.loads else str(tmp_path / "mark")
    with pytest.raises(TensorFileError) as caught:
        read_tensor_file(save(message_hub=HistoryBuffer(), trainer=Call(function, argument)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


def test_objects_without_such_logs_are_refused(save):
    with pytest.raises(TensorFileError, match="more than arrays and plain values"):
        read_tensor_file(save(history=np.array([1.5])))

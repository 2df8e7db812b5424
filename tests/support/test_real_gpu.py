"""A real GPU is seen by the tests marked `gpu` alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import real_gpu
import torch


@pytest.mark.no_fake_gpu("it is there for all")
def test_hidden_and_shown(monkeypatch):
    found = real_gpu.FOUND
    monkeypatch.setattr(real_gpu, "FOUND", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with real_gpu.hidden():
        assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
        with real_gpu.shown():
            assert torch.cuda.is_available() is found
        assert not torch.cuda.is_available()
    assert torch.cuda.is_available()


def test_commands_do_not_see_it():
    code = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "''" == repr(os.environ["CUDA_VISIBLE_DEVICES"])

"""A machine that cannot be measured on is refused in one line, before anything is made."""

from __future__ import annotations

import collections
import dataclasses

import pytest
import torch

from d2_cityscapes.benchmark.gpu import machine
from d2_cityscapes.benchmark.gpu.machine import check_machine, machine_facts
from d2_cityscapes.errors import D2CityscapesError

Usage = collections.namedtuple("Usage", "total used free")


def test_no_gpu(gpu_check_settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "unusable_gpu", lambda: "")
    with pytest.raises(D2CityscapesError, match=r"finds no NVIDIA GPU .* --device cpu --tiny"):
        check_machine(gpu_check_settings)
    monkeypatch.setattr(machine, "unusable_gpu", lambda: "the driver is too old")
    with pytest.raises(D2CityscapesError, match=r"^the driver is too old; --device cpu"):
        check_machine(gpu_check_settings)


def test_no_room_on_the_card(gpu_check_settings, fake_gpu, monkeypatch):
    full = dataclasses.replace(gpu_check_settings, tiny=False)
    monkeypatch.setattr(machine, "available_memory", lambda: 100 << 30)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(0, 0, 100 << 30))
    check_machine(full)
    fake_gpu.memory = 5 << 30
    with pytest.raises(D2CityscapesError, match=r"Fake GPU has 5.0 of 5.0 GiB free"):
        check_machine(full)
    with pytest.raises(D2CityscapesError, match=r"cuda:1: this machine has 1 GPU"):
        check_machine(dataclasses.replace(full, device="cuda:1"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"device": "gpu"}, "--device gpu: use cpu, cuda"),
        ({"device": "meta"}, "--device meta: use cpu, cuda"),
        ({"tiny": False}, "--device cpu takes hours at full size: give --tiny"),
    ],
)
def test_no_such_device(cpu_check, changes, word):
    with pytest.raises(D2CityscapesError, match=word):
        check_machine(dataclasses.replace(cpu_check, **changes))


def test_no_room_elsewhere(cpu_check, monkeypatch):
    assert check_machine(cpu_check) == []
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 29)
    with pytest.raises(D2CityscapesError, match=r"memory of this machine has 0.5 GiB free"):
        check_machine(cpu_check)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(0, 0, 1 << 20))
    with pytest.raises(D2CityscapesError, match=r"the disk has 0.0 GiB free"):
        check_machine(cpu_check)


def test_facts(cpu_check, gpu_check_settings, fake_gpu):
    assert machine_facts(cpu_check)["device"] == "CPU"
    facts = machine_facts(gpu_check_settings)
    assert facts["device"] == "Fake GPU" and facts["memory_gib"] == 24.0
    assert {"driver", "cuda", "commit", "versions", "processor"} <= facts.keys()

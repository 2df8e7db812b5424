"""A check of small networks on small scenes, whose scenes are made once."""

from __future__ import annotations

import dataclasses

import pytest

from d2_cityscapes.benchmark.gpu.scenes import datasets_of
from d2_cityscapes.benchmark.gpu.settings import GpuCheck


@pytest.fixture(scope="session")
def cpu_check(repository, tmp_path_factory) -> GpuCheck:
    """On the CPU."""
    output = tmp_path_factory.mktemp("gpu_check")
    return GpuCheck(output=output, device="cpu", tiny=True)


@pytest.fixture
def scenes(cpu_check):
    """The datasets of `cpu_check`, registered."""
    with datasets_of(cpu_check):
        yield


@pytest.fixture
def gpu_check_settings(cpu_check) -> GpuCheck:
    """On a card, with the scenes of `cpu_check`."""
    return dataclasses.replace(cpu_check, device="cuda")

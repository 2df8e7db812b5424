"""Random records for the tests of shards, and a disk that is soon full."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jpeg2000
import numpy as np
import pytest

from d2_cityscapes.data import write_shards

H, W = 12, 20
IMAGE_CODECS = ("none", *jpeg2000.CODECS)
_SMALL = 1 << 20  # bytes


@pytest.fixture(scope="module")
def sources(array_source):
    rng = np.random.default_rng(0)
    ids = [0, 7, 26, 24000, 24001, 26003, 33999]
    return [
        array_source(
            f"aachen_{i:06d}_000019_leftImg8bit.png",
            rng.integers(0, 256, (H, W, 3), dtype=np.uint8),
            rng.choice(ids, (H, W)).astype(np.int32),
        )
        for i in range(7)
    ]


@pytest.fixture
def folder(sources, tmp_path):
    write_shards(sources, tmp_path, split="train", partitions=3)
    return tmp_path


@pytest.fixture(params=IMAGE_CODECS)
def coded_folder(request, sources, tmp_path):
    """`folder` with each image codec."""
    write_shards(sources, tmp_path, split="train", partitions=3, image_codec=request.param)
    return tmp_path


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which no file grows beyond 1 MB: a disk of that size where one can be mounted,
    else a limit of this process with the same effect."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SMALL}", "tmpfs", str(disk)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        yield disk
        subprocess.run(["umount", "-l", str(disk)], check=True)
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=_SMALL))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_SMALL, limits[1]))
    yield disk
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)

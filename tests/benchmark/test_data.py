"""The data benchmark, end to end on a small tree."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from d2_cityscapes.benchmark.augmentation import AUGMENTATIONS


@pytest.mark.slow
def test_every_comparison_is_made(repository, cityscapes_tree, tmp_path):
    output = tmp_path / "out.json"
    done = subprocess.run(
        [
            sys.executable, "-W", "ignore", repository / "tools" / "benchmark.py", "data",
            "--cityscapes", cityscapes_tree, "--split", "val", "--work-dir", tmp_path / "work",
            "--stock", "png-rle", "--rounds", "1", "--batches", "1", "--workers", "0",
            "--output", output,
        ],
        check=True, timeout=600, capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(output.read_text())["comparisons"]
    assert [c["measure"].split(",")[0] for c in found] == [
        "listing 8 images with boxes and classes",
        "mapper",
        *(f"mapper with {name}".split(",")[0] for name in AUGMENTATIONS),
        "record",
        "imports done to first batch",
        "throughput",
        "peak RSS of all processes",
        "memory added (PSS)",
    ]
    # what 8 small images add drowns in the pages that all tests at work share
    assert all(c["ours"] > 0 and c["theirs"] > 0 and c["ratio"] > 0 for c in found[:-1])
    assert done.stdout.count("png-rle") == 6 and "memcpy" in done.stdout
    assert (tmp_path / "work" / "shards" / "index.json").is_file()

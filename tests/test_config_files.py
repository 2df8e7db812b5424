"""The files that a config is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2_cityscapes.config import get_cfg
from d2_cityscapes.config_files import config_files, files_read


def test_a_config_and_those_that_it_begins_with(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.yaml").write_text("_BASE_: [../a.yaml, b.yaml]\nSEED: 1\n")
    (tmp_path / "sub" / "b.yaml").write_text(f"_BASE_: {tmp_path / 'a.yaml'}\n")
    (tmp_path / "a.yaml").write_text("SEED: 2\n")
    found = [path.resolve().name for path in config_files(tmp_path / "sub" / "c.yaml")]
    assert found == ["c.yaml", "a.yaml", "b.yaml", "a.yaml"]
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS, cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = "w.pth", "k.json"
    assert files_read(tmp_path / "a.yaml", cfg) == [
        tmp_path / "a.yaml",
        Path("w.pth"),
        Path("k.json"),
    ]
    cfg.MODEL.WEIGHTS, cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = "https://host/w.pth", ""
    assert files_read("", cfg) == []


def test_configs_that_lead_nowhere_or_back(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    with pytest.raises(OSError, match=r"b\.yaml"):
        config_files(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(RecursionError):
        config_files(tmp_path / "a.yaml")

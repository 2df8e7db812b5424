"""Configs that are checked, without data behind them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from d2_cityscapes.engine.setup import load_config


@pytest.fixture
def configure(repository: Path) -> Callable[..., CfgNode]:
    """(config, KEY, VALUE, ...) -> the config."""

    def make(config: str, *opts: object) -> CfgNode:
        return load_config(repository / "configs" / config, [str(opt) for opt in opts])

    return make

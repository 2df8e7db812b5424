"""Configs that are made of several YAML files, and what a run reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode
from iopath.common.file_io import g_pathmgr

from d2_cityscapes.shipped import find_config
from d2_cityscapes.yaml_text import load_yaml

__all__ = ["config_files", "files_read"]

_BASE = "_BASE_"  # Detectron2's key for the files that a config begins with


def config_files(config_file: str | Path) -> list[Path]:
    """A config file (see `find_config`) and those that it begins with (``_BASE_``), each read once.

    Addresses with :// are not listed.

    Raises:
        OSError: one cannot be read.
        yaml.YAMLError, RecursionError: see `load_yaml`; a file that leads back to itself, too.
    """
    return [Path(name) for name in _chain(str(find_config(config_file)), ()) if "://" not in name]


def files_read(config_file: str | Path, cfg: CfgNode) -> list[Path]:
    """The files that a command reads by a config: those of `config_files`, weights and anchors.

    Args:
        config_file: the file, or "".
        cfg: what has been read from it.
    """
    named = (cfg.MODEL.WEIGHTS, cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE)
    files = config_files(config_file) if config_file else []
    return [*files, *(Path(name) for name in named if name and "://" not in name)]


def _chain(name: str, above: tuple[str, ...]) -> Iterator[str]:
    """As Detectron2 finds them: beside the file that names them, unless they say where."""
    if os.path.realpath(name) in above:
        raise RecursionError(f"{name} leads back to itself")
    yield name
    with g_pathmgr.open(name, "r") as file:
        content = load_yaml(file.read())
    bases = content.get(_BASE, []) if isinstance(content, dict) else []
    for base in bases if isinstance(bases, list) else [bases]:
        base = os.path.expanduser(str(base))
        if "://" not in base:
            base = os.path.join(os.path.dirname(name), base)
        yield from _chain(base, (*above, os.path.realpath(name)))

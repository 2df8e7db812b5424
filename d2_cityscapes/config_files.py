"""YAML files, and configs that are made of several: read within bounds, and listed as inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from iopath.common.file_io import g_pathmgr

from d2_cityscapes.shipped import find_config

__all__ = ["config_files", "files_read", "load_yaml"]

_BASE = "_BASE_"  # Detectron2's key for the files that a config begins with
_MOST_VALUES = 100_000  # of a file; all keys that there are have less than a thousand


def load_yaml(text: str) -> Any:
    """What a YAML file holds, plain values only.

    An alias (``*name``) repeats a value without its bytes, and aliases of aliases would fill any
    memory; so values are counted with all that they repeat before one is made.

    Raises:
        yaml.YAMLError: no YAML, a tag that asks for more than plain values, or too many values.
        RecursionError: nested without end.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > _MOST_VALUES:
            raise yaml.composer.ComposerError(
                problem=f"aliases (*name) that repeat more than {_MOST_VALUES} values in all; "
                "write out what is meant"
            )
        return loader.construct_document(node)
    finally:
        loader.dispose()


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


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values below a node, with those that aliases repeat.

    Args:
        counted: node -> its number; one that is being counted, as it contains itself, is endless.
    """
    if id(node) not in counted:
        counted[id(node)] = _MOST_VALUES
        below = getattr(node, "value", None)
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        children = below if isinstance(below, list) else ()
        counted[id(node)] = 1 + sum(_count(child, counted) for child in children)
    return counted[id(node)]

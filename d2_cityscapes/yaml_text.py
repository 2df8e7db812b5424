"""YAML from anywhere as plain values, within bounds. Needs no Detectron2."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["load_yaml"]

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

"""YAML from elsewhere stays within bounds."""

from __future__ import annotations

import datetime

import pytest
import yaml

from d2_cityscapes.yaml_text import load_yaml


def bomb(levels: int, width: int = 10) -> str:
    """A few hundred bytes in which aliases of aliases stand for width ** levels values."""
    lines = ["a0: &a0 x"]
    for level in range(1, levels + 1):
        lines.append(f"a{level}: &a{level} [" + ", ".join([f"*a{level - 1}"] * width) + "]")
    return "\n".join(lines)


@pytest.mark.parametrize("text", [bomb(5), bomb(30), bomb(60, 2), "a: &a [*a]", "&a {b: *a}"])
def test_aliases_without_end(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"aliases .* more than 100000 values"):
        load_yaml(text)


def test_merge_keys_without_end() -> None:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40)]
    with pytest.raises(yaml.YAMLError, match="aliases"):
        load_yaml("\n".join(lines))


@pytest.mark.parametrize(
    "text", ["", "a: [1, 2.5, true, null]\nb: {c: text}", "a: &a [1, 2]\nb: [*a, *a]", bomb(3)]
)
def test_plain_values_are_read_as_ever(text: str) -> None:
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml("2026-01-02") == datetime.date(2026, 1, 2)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.getcwd []", "a: [", "a: *b", "\0"])
def test_what_is_no_plain_yaml(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)

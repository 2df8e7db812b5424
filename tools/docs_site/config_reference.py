"""The page of config keys, from the assignments and comments of d2_cityscapes/config.py."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Entry", "config_reference", "read_entries"]

_FUNCTION = "add_d2_cityscapes_config"
_NODE = "CN("  # a section, of keys that are known or not
# lists, at most three in one another; keys; quoted names; files
_CODE = re.compile(
    r"""\[(?:[^\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])*\]
    |\b[A-Z][A-Z0-9_]*(?:\.(?:[A-Z0-9_]+|\{[^}]*\}))+
    |\b[A-Z][A-Z0-9]*_[A-Z0-9_]+(?:/\S*[\w}])?
    |"[\w.*-]*"
    |[\w/]+\.(?:py|pth)\b""",
    re.VERBOSE,
)
_INTRODUCTION = """# Config keys

Every key that this package adds to [Detectron2's own]\
(https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references), with its \
default. The default leaves stock Detectron2 as it is. This page is made of the comments in \
`d2_cityscapes/config.py`.

Keys are set in a YAML file, or behind a command as `KEY VALUE` pairs. A mistyped key names the \
nearest one. One that is set but acts on nothing of a run is refused. Lengths (`MAX_ITER`, \
`STEPS`, periods) count optimizer steps.
"""


class Entry(NamedTuple):
    """Keys that one comment explains.

    Attributes:
        text: the comment, one line.
        defaults: key, such as "SOLVER.OPTIMIZER" -> its default, as Python code. Empty where the
            comment speaks of a key of Detectron2.
    """

    text: str
    defaults: dict[str, str]


def config_reference(path: Path) -> str:
    """The page.

    Args:
        path: config.py.
    """
    parts, section = [_INTRODUCTION], ""
    for entry in read_entries(path.read_text(encoding="utf-8")):
        own = next(iter(entry.defaults), section).partition(".")[0]
        if own != section:
            parts.append(f"\n## {own}\n")
            section = own
        parts.append(_shown(entry))
    return "".join(parts)


def read_entries(code: str) -> list[Entry]:
    """Every comment of the function that adds the keys, and the keys below it, in their order."""
    tree = ast.parse(code)
    (function,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == _FUNCTION
    )
    keys = dict(_assignments(function))
    entries: list[Entry] = []
    comment: list[str] = []
    lines = code.splitlines()
    for number in range(
        function.lineno, (function.end_lineno or 0) + _lines_behind(function, lines)
    ):
        line = lines[number].strip()
        if line.startswith("#"):
            if not comment:
                entries.append(Entry("", {}))
            comment.append(line.lstrip("# "))
            entries[-1] = Entry(" ".join(comment), {})
        else:
            comment = []
            if number + 1 in keys:
                key, default = keys[number + 1]
                entries[-1].defaults[key] = default
    return [entry for entry in entries if entry.text]


def _assignments(function: ast.FunctionDef) -> Iterator[tuple[int, tuple[str, str]]]:
    """Line number -> key and default of every `cfg.SECTION.KEY = default`, sections left out."""
    for node in function.body:
        if isinstance(node, ast.Assign) and not ast.unparse(node.value).startswith(_NODE):
            value = node.value
            if isinstance(value, ast.Call):  # cfg.SECTION.get("KEY", default)
                value = value.args[1]
            key = ast.unparse(node.targets[0]).partition(".")[2]
            yield node.lineno, (key, ast.unparse(value).replace("'", '"'))


def _lines_behind(function: ast.FunctionDef, lines: list[str]) -> int:
    """How many lines of comments follow the last statement, which no syntax tree has."""
    behind = lines[function.end_lineno or 0 :]
    return next((n for n, line in enumerate(behind) if line and not line.startswith(" ")), 0)


def _shown(entry: Entry) -> str:
    text = _as_markdown(entry.text)
    if not entry.defaults:
        return f"\n{text}\n"
    heads = [
        f"### {key} {{ #{key} data-toc-label={key.partition('.')[2]} }}\n\n"
        for key in entry.defaults
    ]
    defaults = [f"Default: `{default}`\n\n" for default in entry.defaults.values()]
    return "\n" + "".join(map("".join, zip(heads, defaults, strict=True))) + f"{text}\n"


def _as_markdown(text: str) -> str:
    """With keys, values and files as code; all else means to Markdown what it says."""
    shown, end = [], 0
    for found in _CODE.finditer(text):
        shown += [_escaped(text[end : found.start()]), f"`{found[0]}`"]
        end = found.end()
    return "".join([*shown, _escaped(text[end:])])


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)

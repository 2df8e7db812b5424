"""What a shell offers for ``d2c ...`` when TAB is pressed, by argcomplete.

The shell starts ``d2c`` with what was typed in the environment, and reads the candidates from it.
Only parsers are made for that: no command runs, and nothing heavy is imported.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from d2_cityscapes.shipped import config_names

__all__ = ["complete", "config_keys"]

_PLACE = "_ARGCOMPLETE"  # set by the shell: the place of our name among the words, from 1
_OVERRIDES = ("opts", "ours", "stages")  # arguments where KEY VALUE pairs may stand
_KEY = re.compile(r"^ *(?:_C|cfg)\.([A-Z0-9_.]+) = (?!CN\(\))(?:CN\(\{\"(\w+)\")?", re.MULTILINE)


def complete(does: Mapping[str, str], run: Callable[[str, list[str]], object]) -> None:
    """Answer the shell, and leave the process with 0.

    Args:
        does: subcommand -> its help.
        run: starts a subcommand with arguments; as far as its first parser, here.
    """
    try:
        from argcomplete import autocomplete
    except ImportError:
        os._exit(0)
    line, point = os.environ["COMP_LINE"].encode(), int(os.environ["COMP_POINT"])
    first = int(os.environ[_PLACE])
    # without what is being typed, which may be nothing
    words = (line[:point].decode(errors="ignore") + "_").split()[first:-1]

    def candidates(prefix: str, action: argparse.Action, **_: object) -> list[str]:
        return _candidates(prefix, action.dest, words)

    completer: Any = candidates  # argcomplete declares a class, and takes any function

    def answer(parser: argparse.ArgumentParser, *_: object) -> None:
        autocomplete(parser, default_completer=completer)

    if not words:
        parser = argparse.ArgumentParser()
        parser.add_argument("--version", action="store_true")
        commands = parser.add_subparsers()
        for name, text in does.items():
            commands.add_parser(name, help=text)
        answer(parser)
    elif words[0] in does:
        os.environ[_PLACE] = str(first + 1)
        argparse.ArgumentParser.parse_args = answer  # type: ignore[assignment]
        run(words[0], words[1:])
    os._exit(0)


def config_keys() -> set[str]:
    """Those of Detectron2 and ours, read from the text that sets them: imports take seconds."""
    found = importlib.util.find_spec("detectron2")
    places = found.submodule_search_locations if found else None
    files = [Path(place, "config", "defaults.py") for place in places or ()]
    files.append(Path(__file__).parents[1] / "config.py")
    matches = (match for file in files for match in _KEY.finditer(file.read_text()))
    return {f"{key}.{below}" if below else key for key, below in (m.groups() for m in matches)}


def _candidates(prefix: str, argument: str, words: list[str]) -> list[str]:
    """For one word: shipped configs or folders of them, config keys, or files.

    Args:
        prefix: what is typed of it.
        argument: of the parser.
        words: those before it.
    """
    from argcomplete.completers import FilesCompleter

    found: set[str] = set()
    if argument == "config_file":
        found = set(config_names())
    if argument == "config_dir":
        found = {posixpath.dirname(name) for name in config_names()} - {""}
    if argument in _OVERRIDES and prefix:
        found = config_keys()
        if words[-1] in found:  # its value
            found = set()
    offered = sorted(name for name in found if name.startswith(prefix))
    if offered and argument in _OVERRIDES:
        return offered
    endings = ["yaml", "yml"] if argument == "config_file" else []
    return [*FilesCompleter(endings)(prefix), *offered]

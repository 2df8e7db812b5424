"""What the pages quote is so: commands parse, config keys, messages and tests are there."""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import d2c
from d2_cityscapes.config import get_cfg, leaves

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(ROOT / name / "README.md" for name in ("configs", "datasets")),
]
SCRIPT = re.compile(r"(?:^|.* )(?:tools|datasets)/(\w+)\.py( .*)?$")
SUBCOMMAND = re.compile(r"(?:^|.*[ =])d2c ([a-z][\w-]*)( .*)?$")
SHELL = ("try()", "pip ")  # begin lines with a command that is not one to type


class Reached(BaseException):
    """A command has come to its arguments."""

    def __init__(self, parser: argparse.ArgumentParser, found: argparse.Namespace | None) -> None:
        self.parser, self.found = parser, found


def quoted(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Module of `d2_cityscapes.commands` and arguments of every command in a block of a page."""
    fence = ""
    for line in page.read_text().replace("\\\n", " ").splitlines():
        if found := re.match(r" *```(\w*)", line):
            fence = "" if fence else found[1] or "text"
        command = re.sub(r" +# .*", "", line).strip()
        shown = fence == "sh" or (not fence and line.startswith("    "))
        if not shown or command.startswith(SHELL):
            continue
        if found := SUBCOMMAND.match(command):
            yield d2c.COMMANDS[found[1]][0], shlex.split(found[2] or "")
        elif found := SCRIPT.match(command):
            yield found[1], shlex.split(found[2] or "")


@pytest.fixture
def parse(monkeypatch):
    """Runs a command up to its arguments; gives its parser and what it makes of them."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser, arguments=None, namespace=None):
        raise Reached(parser, original(parser, arguments, namespace) if read else None)

    def run(module: str, arguments: list[str] | None):
        nonlocal read
        read = arguments is not None
        with pytest.raises(Reached) as reached:
            importlib.import_module(f"d2_cityscapes.commands.{module}").main(arguments or [])
        return reached.value

    read = True
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    return run


COMMANDS = [(page.name, *found) for page in PAGES for found in quoted(page)]


def test_there_are_commands():
    assert len(COMMANDS) > 60
    assert {module for _, module, _ in COMMANDS} >= {module for module, _ in d2c.COMMANDS.values()}


@pytest.mark.parametrize(("page", "module", "arguments"), COMMANDS)
def test_a_command_parses(parse, page, module, arguments):
    found = vars(parse(module, arguments).found)
    overrides = [*found.get("stages", ()), *found.get("opts", ())]
    overrides = [*itertools.dropwhile(str.isdigit, overrides)]
    assert len(overrides) % 2 == 0
    assert not set(overrides[::2]) - set(dict(leaves(get_cfg())))


def options(parser: argparse.ArgumentParser) -> set[str]:
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found = found.union(*map(options, action.choices.values()))
    return found


def test_commands_within_the_text_have_their_options(parse):
    spans = [
        (found[1], re.findall(r"(?<= )--[\w-]+", found[2] or ""))
        for page in PAGES
        for found in re.finditer(r"`d2c ([a-z][\w-]*)( [^`\n]*)?`", page.read_text())
    ]
    assert len(spans) > 30
    for name, asked in spans:
        found = options(parse(d2c.COMMANDS[name][0], None).parser)
        assert not set(asked) - found, name


def texts_of_the_code() -> list[str]:
    """Every text in it; what is put into one is a NUL."""
    found = []
    for path in itertools.chain(
        *((ROOT / top).rglob("*.py") for top in ("d2_cityscapes", "tools"))
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                values = [getattr(value, "value", "") for value in node.values]
                found.append("".join(v if isinstance(v, str) else "\0" for v in values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_are_those_of_the_code():
    messages = re.findall(r"^> `(.+)`$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert len(messages) > 35
    code = texts_of_the_code()
    for message in messages:
        parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        assert any(pattern.search(text) for text in code), message


def test_tests_that_are_named_are_there():
    tests = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.glob("tests/**/*.py")}
    named = [
        (page.name, file, test)
        for page in PAGES
        for file, test in re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+)`", page.read_text())
    ]
    assert len(named) > 20
    for page, file, test in named:
        found = [path for path, text in tests.items() if f"def {test}(" in text]
        assert any(path.endswith(file) for path in found), (page, file, test)

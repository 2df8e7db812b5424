"""tools/install_detectron2, importable, and what stands in for the archive and for pip."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
from install_detectron2 import command, download, edits, pip_process, wheel

sys.path.pop(0)  # the package is loaded, and nothing else of tools/ is wanted


@pytest.fixture(scope="session")
def fake_tree() -> Callable[[Path], Path]:
    """Writes a tree on which the whole table applies: every old text, as often as it should be."""

    def make(root: Path) -> Path:
        texts: dict[str, str] = {
            "detectron2/model_zoo/configs/COCO-Detection/some.yaml": "MODEL: {}\n",
            "LICENSE": "Apache License",
            "README.md": "Detectron2 é",
        }
        for package in ("detectron2", *wheel.PROJECTS.values()):
            texts[f"{package}/__init__.py"] = ""
        for edit in edits.EDITS:
            texts[edit.path] = texts.get(edit.path, "\n") + (edit.old + "\n") * edit.count
        for path, text in texts.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        return root

    return make


class FakePip:
    """Stands in for every call of pip: the first unused answer whose key is in the command."""

    def __init__(self, *answers: tuple[str, int, str, Callable[[Path], object] | None]) -> None:
        self.answers = list(answers)
        self.commands: list[str] = []

    def __call__(self, arguments: Sequence[str], build_tools: Path | None) -> tuple[int, str]:
        command = " ".join(["-m pip", *arguments])
        self.commands.append(command)
        folder = Path(arguments[arguments.index("--dest") + 1]) if "--dest" in arguments else None
        text = (folder / "requirement.txt").read_text() if folder else ""
        for answer in self.answers:
            key, code, output, act = answer
            if key in command + text:
                self.answers.remove(answer)
                if act is not None:
                    assert folder is not None
                    act(folder)
                return code, output
        raise AssertionError(f"unexpected call of pip: {command} {text}")


@pytest.fixture
def fake_pip(monkeypatch) -> Callable[..., FakePip]:
    """Replaces pip by answers: (part of the command, exit code, output, what it does to --dest)."""

    def replace(*answers: tuple[str, int, str, Callable[[Path], object] | None]) -> FakePip:
        pip = FakePip(*answers)
        monkeypatch.setattr(pip_process, "_call", pip)
        return pip

    return replace


@pytest.fixture
def nothing_installed(monkeypatch) -> None:
    """No Detectron2, and whatever module is asked for."""
    monkeypatch.setattr(command, "find_detectron2", lambda: None)
    monkeypatch.setattr(command, "has_module", lambda name: True)
    monkeypatch.setattr(download, "has_module", lambda name: True)

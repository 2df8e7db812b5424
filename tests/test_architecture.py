"""The rules of who may import whom hold, and a wrong import breaks them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = "Each room stands on lower ones only"
PLAIN = "Plain rooms, and plain modules of other rooms, need no Detectron2"


def lint(folder: Path) -> tuple[int, str]:
    """Exit code and output of import-linter in a checkout."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A copy of the package and its rules, to be spoilt."""
    shutil.copytree(repository / "d2_cityscapes", tmp_path / "d2_cityscapes")
    shutil.copy(repository / "pyproject.toml", tmp_path)
    return tmp_path


def test_no_contract_is_broken(repository: Path) -> None:
    code, output = lint(repository)
    assert code == 0 and "2 kept, 0 broken" in output, output


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("shards/reader.py", "from d2_cityscapes.engine import setup", ROOMS),
        ("engine/trainer.py", "import d2_cityscapes.stages.run", ROOMS),
        ("search/run.py", "from d2_cityscapes.stages.run import run_stages", ROOMS),
        ("shards/reader.py", "from detectron2.structures import Boxes", PLAIN),
        ("sources/idd.py", "def f():\n    import d2_cityscapes.config", PLAIN),  # at one remove
        ("new_room/__init__.py", "", ROOMS),  # which says nowhere where it stands
    ],
)
def test_a_wrong_import_breaks_one(checkout: Path, module: str, line: str, contract: str) -> None:
    path = checkout / "d2_cityscapes" / module
    path.parent.mkdir(exist_ok=True)
    with open(path, "a") as file:
        file.write(f"\n{line}\n")
    code, output = lint(checkout)
    assert code == 1 and f"{contract} BROKEN" in output, output

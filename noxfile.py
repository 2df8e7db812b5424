"""The matrix of versions: `nox --list`, then e.g. `nox -s "end_to_end(oldest)"`.

Environments are made by uv (`pip install nox uv`), 5.5 GB each with PyTorch for CUDA, a quarter of
that without (UV_TORCH_BACKEND=cpu). docs/install.md says what was run, and with what result.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.sessions = ["wheel", "plain", "end_to_end"]
nox.options.stop_on_first_error = False

# Name -> Python, and what is pinned; the newest of everything else. Each two of an old and a new
# Python, PyTorch, numpy and Pillow meet in a row, where there are wheels for both.
ROWS: dict[str, tuple[str, list[str]]] = {
    "oldest": ("3.10", ["torch==2.4.1", "torchvision==0.19.1", "numpy==1.26.4", "pillow==10.4.0"]),
    "old-torch": ("3.12", ["torch==2.4.1", "torchvision==0.19.1"]),
    "old-arrays": ("3.12", ["numpy==1.26.4", "pillow==10.4.0"]),
    "old-python": ("3.10", []),
    "pinned": ("3.11", ["--constraint", "constraints.txt"]),
    "newest": ("3.13", []),
    "next-python": ("3.14", []),
}
# The tests of what needs no Detectron2; tests/test_repository.py holds it against pyproject.toml.
PLAIN = [
    "tests/drawing",
    "tests/evaluation/panoptic",
    "--ignore=tests/evaluation/panoptic/test_instance_ids.py",
    "tests/evaluation/semantic",
    "tests/evaluation/test_expected.py",
    "tests/evaluation/test_results.py",
    "tests/labels",
    "tests/layers",
    "tests/report",
    "tests/shards",
    "tests/sources",
    "--ignore=tests/sources/test_idd.py",
    "--ignore=tests/sources/test_vistas.py",
    "tests/synthetic",
    "tests/tensor_files",
    "tests/test_errors.py",
    "tests/test_files.py",
    "tests/test_memory.py",
    "tests/test_png.py",
    "tests/test_worker_pool.py",
]
WHEELS = Path("output/release")

in_each_row = nox.parametrize(
    ("python", "row"), [(python, name) for name, (python, _) in ROWS.items()], ids=list(ROWS)
)


@nox.session
@in_each_row
def plain(session: nox.Session, row: str) -> None:
    """Rooms that need no Detectron2, where there is none."""
    _install(session, row)
    session.run("python", "-m", "pytest", *(session.posargs or PLAIN))


@nox.session
@in_each_row
def tests(session: nox.Session, row: str) -> None:
    """The whole suite."""
    _install(session, row, detectron2=True)
    session.run("python", "-m", "pytest", "-n", "logical", *session.posargs)


@nox.session
@in_each_row
def end_to_end(session: nox.Session, row: str) -> None:
    """From PNGs to a report by the commands: the wheel, and Detectron2 by its installer."""
    _install(session, row, detectron2=True)
    session.run("d2c", "doctor", success_codes=[0, 1])  # it says what is missing, such as a dataset
    # not as a module of Python, which would take the checkout for the package
    session.run("pytest", "tests/test_end_to_end.py", *session.posargs)


@nox.session(python="3.12")
def wheel(session: nox.Session) -> None:
    """Wheel and source archive, looked at as the index does."""
    session.install("build", "twine")
    shutil.rmtree(WHEELS, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(WHEELS))
    session.run("twine", "check", "--strict", *map(str, sorted(WHEELS.iterdir())))


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """`make lint`."""
    session.run("make", "lint", external=True)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """`make docs`."""
    session.run("make", "docs", external=True)


def _install(session: nox.Session, row: str, *, detectron2: bool = False) -> None:
    """This package as a wheel, what the tests need, and the versions of a row; lists them."""
    session.env["PYTHONPATH"] = ""  # as a user has it
    session.install("pip<=25.3", "setuptools", "wheel", *ROWS[row][1], ".[dev]")
    if detectron2:
        session.run("d2c", "install-detectron2")
    session.run("uv", "pip", "list", external=True)

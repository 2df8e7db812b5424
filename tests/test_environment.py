"""environment.yml asks conda for all that the package needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

# where conda-forge has another name than PyPI
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
FROM_PYPI = {"cityscapesscripts"}  # pip brings it, with the package


def floor(requirement: str) -> tuple[str, tuple[int, ...]]:
    """ "numpy >=1.26" is ("numpy", (1, 26))."""
    name, _, version = re.sub(r"[ ;].*", "", requirement.replace(" >=", ">=")).partition(">=")
    return name.lower(), tuple(int(n) for n in re.findall(r"\d+", version))


@pytest.fixture(scope="module")
def environment(repository: Path) -> dict[str, tuple[int, ...]]:
    content = yaml.safe_load((repository / "environment.yml").read_text())
    return dict(floor(line) for line in content["dependencies"] if isinstance(line, str))


def test_each_dependency_at_least_as_new(repository: Path, environment) -> None:
    setup = (repository / "setup.py").read_text()
    listed = re.search(r"install_requires=\[(.*?)\]", setup, re.DOTALL)
    needed = dict(floor(line) for line in re.findall(r'"([^"]+)"', listed[1]))
    assert len(needed) > 10
    for name, version in needed.items():
        if name not in FROM_PYPI:
            assert environment[CONDA_NAMES.get(name, name)] >= version, name


def test_what_detectron2_needs_there_and_does_not_say(environment) -> None:
    assert {"detectron2", "py-opencv", "setuptools"} <= environment.keys()
    assert environment["numpy"] >= (2,)

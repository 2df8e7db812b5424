"""Versions against those that were tested, and which Detectron2 this is."""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import d2_cityscapes
from d2_cityscapes.dependencies import MISSING_DETECTRON2, has_detectron2
from d2_cityscapes.doctor.findings import Finding
from d2_cityscapes.shipped import shipped

__all__ = ["RANGES", "has_torch", "software_findings"]

_TOPIC = "software"
_NEEDED = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "fvcore",
    "safetensors",
    "zstandard",
    "cityscapesscripts",
    "pycocotools",
    "scikit-learn",
    "scipy",
    "matplotlib",
    "tqdm",
    "optuna",
)
_TORCH = ("torch", "torchvision")
# The oldest and the newest that tests were run with, rows of noxfile.py; of all else there is one
# version, in constraints.txt. docs/install.md says which tests.
RANGES = {
    "python": ("3.10.13", "3.13.0"),
    "torch": ("2.4.1", "2.14.1"),
    "torchvision": ("0.19.1", "0.29.1"),
    "numpy": ("1.26.4", "2.5.5"),
    "pillow": ("10.4.0", "13.0.0"),
}
# the distribution, and what it gives
_USEFUL = {"imagecodecs": "PNGs read in two thirds of the time, and JPEG 2000 shards"}
_EDITED = "COMPATIBILITY_EDITS.txt"  # in the wheel that tools/install_detectron2 makes


def software_findings() -> Iterator[Finding]:
    """Python, the package, what it needs, and Detectron2."""
    yield Finding(_TOPIC, "system", f"{platform.platform()}, {platform.machine()}")
    python = _beside_tested(platform.python_version(), RANGES["python"])
    yield Finding(_TOPIC, "python", f"{python} ({sys.executable})")
    where = Path(d2_cityscapes.__file__).parent
    yield Finding(_TOPIC, "d2_cityscapes", f"{d2_cityscapes.__version__} ({where})")
    tested = _tested_versions()
    for name in _NEEDED:
        found = _version(name)
        if found is None:
            yield Finding(_TOPIC, name, "missing", f"pip install {name}")
        elif name in _TORCH and (error := _import_error(name)):
            remedy = f"pip install --force-reinstall {' '.join(_TORCH)}"
            yield Finding(_TOPIC, name, f"{found}, broken: {error}", remedy)
        else:
            yield Finding(_TOPIC, name, _beside_tested(found, tested.get(name)))
    for name, gives in _USEFUL.items():
        yield Finding(_TOPIC, name, _version(name) or f"not installed ({gives})")
    yield _detectron2()


def has_torch() -> bool:
    """Whether PyTorch and torchvision can be imported."""
    return not any(_import_error(name) for name in _TORCH)


def _import_error(name: str) -> str:
    """Why a module cannot be imported, in one line; "" where it can."""
    try:
        importlib.import_module(name)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _tested_versions() -> dict[str, tuple[str, str]]:
    """Distribution -> oldest and newest version."""
    pins = re.findall(r"^([\w.-]+)==(\S+)", shipped("constraints.txt").read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): (version, version) for name, version in pins} | RANGES


def _beside_tested(found: str, tested: tuple[str, str] | None) -> str:
    if tested is None or _parts(tested[0]) <= _parts(found) <= _parts(tested[1]):
        return found
    return f"{found} (tested with {' to '.join(dict.fromkeys(tested))})"


def _parts(version: str) -> list[int]:
    """The first three numbers: [2, 4, 1] of "2.4.1+cpu"."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]


def _detectron2() -> Finding:
    name = "detectron2"
    if not has_detectron2():
        return Finding(_TOPIC, name, "missing", MISSING_DETECTRON2.rpartition(": ")[2])
    if not has_torch():
        return Finding(_TOPIC, name, "there, but it needs PyTorch first")
    try:
        with warnings.catch_warnings():  # of old ways in Detectron2 and fvcore
            warnings.simplefilter("ignore")
            import detectron2
            import detectron2.engine
            import detectron2.modeling
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(
            _TOPIC, name, f"broken: {reason}", "d2c install-detectron2 --force, or its newest build"
        )
    compiled = importlib.util.find_spec("detectron2._C") is not None
    operators = "with compiled operators" if compiled else "without compiled operators"
    where = Path(detectron2.__file__).parent
    return Finding(_TOPIC, name, f"{detectron2.__version__}, {_road()}, {operators} ({where})")


def _road() -> str:
    """How this Detectron2 came here."""
    try:
        distribution = metadata.distribution("detectron2")
    except metadata.PackageNotFoundError:
        return "a source tree on the path"
    if any(file.name == _EDITED for file in distribution.files or ()):
        return "our pure-Python build"
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if "vcs_info" in origin:
        return f"built from {origin['url']} at {origin['vcs_info'].get('commit_id', '?')[:8]}"
    if origin.get("dir_info", {}).get("editable"):
        return "an editable installation"
    installer = (distribution.read_text("INSTALLER") or "another way").strip()
    return f"installed by {installer}"

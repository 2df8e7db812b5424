"""The edited tree, packed as a wheel."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

from .edits import ADDED_FILES, EDITS, SDIST_VERSION
from .errors import InstallError

__all__ = ["PROJECTS", "REQUIREMENTS", "build_wheel"]

_INFO = f"detectron2-{SDIST_VERSION}.dist-info"

# The projects that v0.6's own setup.py installs as detectron2.projects.*
PROJECTS = {
    "point_rend": "projects/PointRend/point_rend",
    "deeplab": "projects/DeepLab/deeplab",
    "panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}

# v0.6's install_requires, less `black` (formats saved lazy configs, pinned to a 2021 beta),
# `future` (Caffe2 only), `dataclasses` (Python 3.6 only) and the upper bound of iopath (< 0.1.10).
REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "pydot",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
)


def build_wheel(root: Path, folder: Path) -> Path:
    """Pack the edited tree at `root` as `detectron2-0.6-py3-none-any.whl` in `folder`.

    Written by hand rather than with v0.6's setup.py, which imports torch, compiles C++ and carries
    the pins; the same tree always gives the same bytes.
    """
    contents = {**_packages(root), **_metadata(root)}
    rows = []
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}\n")
    rows.append(f"{_INFO}/RECORD,,\n")
    contents[f"{_INFO}/RECORD"] = "".join(rows).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"detectron2-{SDIST_VERSION}-py3-none-any.whl"
    _write_zip(wheel, contents)
    return wheel


def _packages(root: Path) -> dict[str, bytes]:
    """The Python and YAML files of Detectron2 and its projects: name in the wheel -> content."""
    contents: dict[str, bytes] = {}
    sources = {f"detectron2/projects/{name}": folder for name, folder in PROJECTS.items()}
    for target, source in {"detectron2": "detectron2", **sources}.items():
        if not (root / source / "__init__.py").is_file():
            raise InstallError(f"the archive has no package {source}")
        for path in sorted((root / source).rglob("*")):
            if path.is_file() and path.suffix in (".py", ".yaml"):
                name = path.relative_to(root / source).as_posix()
                contents[f"{target}/{name}"] = path.read_bytes()
    if not any(name.startswith("detectron2/model_zoo/configs/") for name in contents):
        raise InstallError("the archive has no detectron2/model_zoo/configs")
    return contents


def _metadata(root: Path) -> dict[str, bytes]:
    """What describes the wheel, but for its RECORD: name in the wheel -> content."""
    headers = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {SDIST_VERSION}",
        "Summary: Detectron2 0.6 without compiled operators, edited to run on current libraries",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "Requires-Python: >=3.8",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
        "Description-Content-Type: text/markdown",
    ]
    readme = (root / "README.md").read_text(encoding="utf-8")
    tags = ["Wheel-Version: 1.0", "Generator: d2_cityscapes", "Root-Is-Purelib: true"]
    tags.append("Tag: py3-none-any")
    return {
        f"{_INFO}/LICENSE": (root / "LICENSE").read_bytes(),
        f"{_INFO}/COMPATIBILITY_EDITS.txt": _notice().encode(),
        f"{_INFO}/METADATA": ("\n".join(headers) + "\n\n" + readme).encode(),
        f"{_INFO}/WHEEL": ("\n".join(tags) + "\n").encode(),
        f"{_INFO}/top_level.txt": b"detectron2\n",
    }


def _notice() -> str:
    """The list of changes that travels inside the wheel, as the Apache licence asks."""
    lines = [
        "Detectron2 0.6 with compatibility edits for current Python, numpy, Pillow, torch and",
        "setuptools, made by tools/install_detectron2.py of d2_cityscapes. Changed files:",
        "",
    ]
    lines += [f"{edit.path}: {edit.reason}" for edit in EDITS]
    lines += [f"{added.path} (new): {added.reason}" for added in ADDED_FILES]
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _write_zip(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write name -> content as a zip file with fixed times; `path` is whole or not there."""
    partial = path.with_suffix(".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                entry = zipfile.ZipInfo(name, date_time=(2021, 11, 15, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

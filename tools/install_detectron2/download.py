"""The source archive, downloaded with pip and checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .edits import SDIST_NAME, SDIST_SHA256, SDIST_VERSION
from .errors import InstallError
from .pip_process import run_pip
from .probe import has_module

__all__ = ["check_sha256", "download_sdist"]


def download_sdist(folder: Path) -> Path:
    """Download the source archive into `folder`, check it, and return its path."""
    requirement = f"{SDIST_NAME}=={SDIST_VERSION}"
    doing = f"cannot download {requirement}"
    tools = _fetch_build_tools(folder / "build_tools")
    # with the hash in hand, pip compares it before it runs anything of the archive
    pinned = folder / "requirement.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{SDIST_SHA256}\n")
    arguments = ["--no-deps", "--require-hashes", "--dest", str(folder), "--no-build-isolation"]
    arguments += ["--no-binary", ":all:", "--requirement", str(pinned)]
    run_pip("download", arguments, doing=doing, build_tools=tools)
    archives = sorted(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise InstallError(f"{doing}: expected one .tar.gz from pip, found {len(archives)}")
    check_sha256(archives[0], SDIST_SHA256)
    return archives[0]


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file whose content is not the one that the edits were written for."""
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{path.name}: SHA-256 is {actual}, expected {expected}; nothing was installed"
        )


def _fetch_build_tools(folder: Path) -> Path | None:
    """Put a setuptools that can describe the archive into `folder` where the installed one cannot.

    pip reads an archive's metadata even to download it. Without build isolation (the archive's
    setup.py imports torch) that takes setuptools 70.1, or an older one and the package wheel; a
    fresh virtual environment of Python 3.11 has neither, one of Python 3.12 no setuptools at all.
    """
    complete = has_module("setuptools.command.bdist_wheel")
    if complete or (has_module("setuptools") and has_module("wheel")):
        return None
    arguments = ["--target", str(folder), "setuptools>=70.1"]
    run_pip("install", arguments, doing="cannot download setuptools")
    return folder

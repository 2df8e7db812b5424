"""Running pip, and what its failures mean."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import InstallError

__all__ = ["run_pip"]

# pip 26.3 refuses to download any archive from PyPI whose metadata names a URL as a dependency, and
# this one does so in an optional extra, which is never installed. Which pip to trust is the user's
# choice: the refusal is reported with the newest pip that was seen to download it.
_WORKING_PIP = "25.3"
_REFUSES_URLS = "cannot declare direct URL dependencies"

_OPTIONS = ("--disable-pip-version-check", "--no-input", "--retries", "2")


def run_pip(
    command: str, arguments: Sequence[str], *, doing: str, build_tools: Path | None = None
) -> None:
    """Run a command of this interpreter's pip; a failure is an `InstallError` of one line.

    Args:
        command: "install" or "download".
        arguments: what follows it on the command line.
        doing: what the error begins with, for example "cannot download setuptools".
        build_tools: a folder whose packages win over the installed ones.
    """
    code, output = _call([command, *_OPTIONS, *arguments], build_tools)
    if code:
        raise _explain(output, doing)


def _call(arguments: Sequence[str], build_tools: Path | None) -> tuple[int, str]:
    """Run pip; returns the exit code and everything that it printed."""
    environment = dict(os.environ)
    if build_tools is not None:
        paths = [str(build_tools), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    result = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
    )
    return result.returncode, result.stdout


def _explain(output: str, doing: str) -> InstallError:
    """Turn pip's output into one line."""
    if "DO NOT MATCH THE HASHES" in output:
        return InstallError(f"{doing}: the downloaded file has another SHA-256 than expected")
    if re.search(
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|"
        r"Failed to establish|name resolution|timed out|Max retries exceeded|Connection refused",
        output,
    ):
        return InstallError(f"{doing}: cannot reach the package index; is there a network?")
    if _REFUSES_URLS in output:
        return InstallError(
            f"{doing}: this pip is too new for it (it refuses a URL in an optional extra); run "
            f"`{sys.executable} -m pip install pip=={_WORKING_PIP}`, then this again"
        )
    if "No module named pip" in output:
        return InstallError(f"{doing}: this Python has no pip; run `{sys.executable} -m ensurepip`")
    # A failed setup.py says more than pip's own summary below it, which names only the phase.
    for pattern, which in (
        (r"^\s*(\w*(?:Error|Exception): .+)$", -1),
        (r"^\s*ERROR: (.+)$", 0),
        (r"^\s*error: (?!subprocess-exited|metadata-generation)(.+)$", -1),
        (r"^(.+)$", -1),
    ):
        lines = re.findall(pattern, output, re.MULTILINE)
        if lines:
            return InstallError(f"{doing}: {lines[which].strip()}")
    return InstallError(f"{doing}: pip failed without a word")

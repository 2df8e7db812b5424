"""What this Python can import already, as a user's program would."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile

__all__ = ["Found", "find_detectron2", "has_module"]

MINIMUM_VERSION = (0, 6)


@dataclasses.dataclass(frozen=True)
class Found:
    """What importing `detectron2` gives in this interpreter."""

    version: str
    folder: str
    problem: str = ""  # why its parts cannot be imported; empty when they can

    @property
    def new_enough(self) -> bool:
        """Whether the version is at least the one that d2_cityscapes supports."""
        return tuple(int(n) for n in re.findall(r"\d+", self.version)[:2]) >= MINIMUM_VERSION


_PROBE = """\
import sys
try:
    import detectron2
    version, folder = detectron2.__version__, detectron2.__path__[0]
except (ImportError, AttributeError):
    sys.exit(0)
problem = ""
try:
    import detectron2.engine, detectron2.modeling
except Exception as error:
    problem = " ".join(f"{type(error).__name__}: {error}".split())
print("found", version, folder, problem, sep="\\t")
"""


def find_detectron2() -> Found | None:
    """Import Detectron2 as a user's program would, and say what was found.

    A fresh interpreter in an empty folder does it, so that a `detectron2` folder in the current
    directory is not taken for an installation, while PYTHONPATH still counts.
    """
    for line in _python(_PROBE).stdout.splitlines():
        if line.startswith("found\t"):
            _, version, folder, problem = line.split("\t", 3)
            return Found(version, folder, problem)
    return None


def has_module(name: str) -> bool:
    """Whether the module can be imported from anywhere but the current directory."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return _python(code).returncode == 0


def _python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, in an empty folder."""
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=empty, capture_output=True, text=True)

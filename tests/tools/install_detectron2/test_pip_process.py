"""What pip says when it fails, in one line."""

from __future__ import annotations

import pytest
from install_detectron2.errors import InstallError
from install_detectron2.pip_process import run_pip


@pytest.mark.parametrize(
    "output, message",
    [
        (
            "WARNING: Retrying after NewConnectionError(...)\nERROR: No matching",
            "is there a network",
        ),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "another SHA-256 than expected"),
        (
            "ERROR: Distributions from PyPI cannot declare direct URL dependencies.",
            "-m pip install pip==25.3",
        ),
        ("/usr/bin/python: No module named pip", "-m ensurepip"),
        (
            "  ValueError: broken\nerror: metadata-generation-failed\nhint: See",
            "ValueError: broken",
        ),
        ("  error: invalid command 'x'\nerror: metadata-generation-failed", "invalid command 'x'"),
        ("ERROR: Cannot install a and b\nERROR: ResolutionImpossible", "Cannot install a and b"),
        ("", "pip failed without a word"),
    ],
)
def test_failure_is_one_line(fake_pip, output, message):
    pip = fake_pip(("-m pip download", 1, output, None))
    with pytest.raises(InstallError) as failure:
        run_pip("download", ["a"], doing="cannot download a")
    text = str(failure.value)
    assert text.startswith("cannot download a: ") and message in text and "\n" not in text
    assert len(pip.commands) == 1


def test_build_tools_win_over_what_is_installed(tmp_path):
    """A folder with a package `pip` of its own: this one is run."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/__init__.py").write_text("")
    (tmp_path / "pip/__main__.py").write_text("import sys; sys.exit('ERROR: the stand-in ran')")
    with pytest.raises(InstallError, match=r"^cannot do it: the stand-in ran$"):
        run_pip("install", [], doing="cannot do it", build_tools=tmp_path)

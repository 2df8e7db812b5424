"""What lines for the user have in common."""

import os
import subprocess
import sys

import pytest

from d2_cityscapes.errors import first_few, nearest, run


@pytest.mark.parametrize(
    ("values", "text"), [([], ""), ([7], "7"), ([1, 2], "1, 2"), ("abc", "a, b, ...")]
)
def test_first_few(values: list, text: str) -> None:
    assert first_few(values, 2) == text


def test_nearest_names() -> None:
    known = iter(["backbone", "backbones", "neck"])
    assert nearest("backbon", known) == "; nearest: backbone, backbones"
    assert nearest("xyz", ["backbone"]) == ""
    assert nearest("bone", ["backbone"], cutoff=0.7) == ""


PROGRAM = """
import sys
from d2_cityscapes.errors import run

def main():
    if sys.argv[1] == "leave":
        print("some words")
        sys.exit(0)
    for number in range(100_000):
        print(number, file=getattr(sys, sys.argv[1]))

run(main)
"""


@pytest.mark.parametrize("what", ["stdout", "stderr", "leave"])
def test_nobody_reads_to_the_end(repository, what) -> None:
    """As in "command | head", and "command --help | head", whose text is written at the end."""
    reader, writer = os.pipe()
    os.close(reader)
    other = "stdout" if what == "stderr" else "stderr"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what],
        env={**os.environ, "PYTHONPATH": str(repository), "D2_CITYSCAPES_PLAIN": "1"},
        check=False,
        **{other: subprocess.PIPE, "stderr" if what == "stderr" else "stdout": writer},
    )
    os.close(writer)
    assert (done.returncode, getattr(done, other)) == (141, b"")


def test_other_pipes_that_break_are_defects() -> None:
    def main() -> None:
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        run(main)

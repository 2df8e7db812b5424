"""Commands end with one line and an exit code, and keep the traceback of our own defects."""

from __future__ import annotations

import pickle

import pytest

from d2_cityscapes.errors import D2CityscapesError, run


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (None, 0, ""),
        (
            D2CityscapesError("x.png: broken; download it again"),
            1,
            "error: x.png: broken; download",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(capsys, outcome, code, line):
    def main():
        if outcome is not None:
            raise outcome

    with pytest.raises(SystemExit) as left:
        run(main)
    error = capsys.readouterr().err
    assert left.value.code == code
    assert error.startswith(line) and error.count("\n") == (1 if line else 0)


def test_details_stand_above_the_line(capsys):
    def main():
        raise D2CityscapesError("2 problems, listed above", details=["a.png: 1", "b.png: 2"])

    with pytest.raises(SystemExit):
        run(main)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["a.png: 1", "b.png: 2", "error: 2 problems, listed above"]


def test_details_survive_the_way_out_of_a_worker():
    error = pickle.loads(pickle.dumps(D2CityscapesError("x", details=["y"])))
    assert str(error) == "x" and error.details == ("y",)


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)

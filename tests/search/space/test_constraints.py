"""Conditions between config keys."""

from __future__ import annotations

import pytest

from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.space.constraints import Constraint

VALUES = {"A.LOW[0]": 0.2, "A.LOW[1]": 0.5, "B": 3, "C": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A.LOW[0] < A.LOW[1]", True),
        ("A.LOW[1] <= A.LOW[0]", False),
        ("0.1 < A.LOW[0] < A.LOW[1] < 0.6", True),
        ("0.1 < A.LOW[1] < A.LOW[0]", False),
        ("A.LOW[1] - A.LOW[0] >= 0.3", True),
        ("A.LOW[0] * 2 + B / 2 > 2", False),
        ("-B == -3", True),
        ("not B > 2", False),
        ("B > 5 or B != 4", True),
        ("B > 2 and C > 0", False),
        ("B > 1e-4 and (C > 0) == False", True),
    ],
)
def test_conditions(text, expected):
    assert Constraint(text).holds(VALUES) is expected


def test_names():
    assert Constraint("A.LOW[0] < B and B < A.LOW[0] + 3").names == ("A.LOW[0]", "B")


@pytest.mark.parametrize(
    "text",
    [
        "", "A <", "A.LOW[0]", "1 < 2", "A + B", "max(A, B) < 1", "__import__('os').x < 1",
        "A < 'x'", "A in B", "A[x] < 1", "A[-1] < 1", "A ** 2 < 1", "[A][0] < 1", "A if B else A",
        "A[0]B < 1", "A[0].B < 1", "A . B < 1", "é < A", "A < (B := 1)", "lambda: A < 1", "-A",
    ],
)  # fmt: skip
def test_other_expressions_are_refused(text):
    with pytest.raises(SearchError, match="use comparisons of config keys") as caught:
        Constraint(text)
    assert repr(text) in str(caught.value)


def test_values_that_do_not_compare():
    with pytest.raises(SearchError, match=r"'B / C > 1': division by zero"):
        Constraint("B / C > 1").holds(VALUES)
    with pytest.raises(SearchError, match=r"'B < A.LIST'"):
        Constraint("B < A.LIST").holds(VALUES | {"A.LIST": [1]})

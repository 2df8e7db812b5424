"""Spaces: what they say is what is sampled, and what says nothing is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.samplers import RandomSampler

from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.space.space import parse_space

ENTRIES = {
    "A.RATE": {"type": "log", "low": 1e-5, "high": 1e-2},
    "A.LIST[0]": {"type": "float", "low": 0.1, "high": 0.7},
    "A.LIST[1]": {"type": "float", "low": 0.1, "high": 0.7, "step": 0.3},
    "A.COUNT": {"type": "int", "low": 8, "high": 64, "step": 8},
    "A.FROZEN": {"type": "categorical", "choices": [["x"], [], ["x", "y"]]},
    "A.NAME": {"type": "categorical", "choices": ["0.1", "SGD"]},
    "A.ON": {"type": "categorical", "choices": [True, False]},
}


@given(st.integers(0, 2**32 - 1))
def test_samples_are_in_the_space(seed):
    space = parse_space(ENTRIES, ["A.LIST[0] < A.LIST[1]"])
    params = space.sample(RandomSampler(seed))
    json.dumps(params)
    for parameter in space.parameters:
        internal = parameter.distribution.to_internal_repr(params[parameter.name])
        assert parameter.distribution._contains(internal)
    values = space.values(params)
    assert values["A.LIST[0]"] < values["A.LIST[1]"]
    assert values["A.LIST[1]"] in (0.1, 0.4, pytest.approx(0.7))
    assert values["A.COUNT"] in range(8, 65, 8)
    assert values["A.FROZEN"] in ENTRIES["A.FROZEN"]["choices"]
    assert values["A.NAME"] in ("0.1", "SGD") and values["A.ON"] in (True, False)


def test_every_value_occurs():
    space = parse_space(ENTRIES)
    sampler = RandomSampler(0)
    samples = [space.sample(sampler) for _ in range(400)]
    assert {s["A.COUNT"] for s in samples} == set(range(8, 65, 8))
    assert len({s["A.FROZEN"] for s in samples}) == 3
    assert {round(s["A.LIST[1]"], 3) for s in samples} == {0.1, 0.4, 0.7}
    below = sum(s["A.RATE"] < 10**-3.5 for s in samples)  # the middle of a log scale
    assert 150 < below < 250


def test_names_have_a_key_and_indices():
    space = parse_space({"A.B[0][12]": {"type": "int", "low": 1, "high": 2}})
    (parameter,) = space.parameters
    assert (parameter.key, parameter.indices) == ("A.B", (0, 12))


def test_a_space_survives_being_written_down():
    space = parse_space(ENTRIES)
    again = parse_space(json.loads(json.dumps(space.entries())))
    assert again.distributions == space.distributions
    assert again.entries() == space.entries()


def test_constraints_see_fixed_values():
    space = parse_space({"A": {"type": "float", "low": 0.0, "high": 1.0}}, ["A < B"])
    object.__setattr__(space, "fixed", {"B": 0.5})
    assert space.is_feasible({"A": 0.4}) and not space.is_feasible({"A": 0.6})


def _float(**changes) -> dict:
    return {"type": "float", "low": 0.1, "high": 0.4} | changes


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "space is empty"),
        (None, "space is empty"),
        ({"A": 3}, "space: A: give it a type, one of float, log, int, categorical"),
        ({"A": {"low": 1, "high": 2}}, "A: give it a type"),
        ({"A": _float(type="uniform")}, "A: give it a type"),
        ({"A": _float(low=0.5)}, r"A: low 0.5 is not below high 0.4"),
        ({"A": _float(low=0.4)}, r"A: low 0.4 is not below high 0.4"),
        ({"A": _float(low="1e-4")}, "A: low '1e-4': use a number; YAML wants 1.0e-4"),
        ({"A": _float(high=None)}, "A: high None: use a number"),
        ({"A": _float(high=float("inf"))}, "A: high inf: use a number"),
        ({"A": _float(hihg=3)}, "A: unknown 'hihg'; float takes low, high, step"),
        ({"A": _float(step=0.5)}, "A: step 0.5 does not fit"),
        ({"A": _float(type="log", low=0)}, "A: low 0: a log range begins above 0"),
        ({"A": _float(type="int")}, "A: low 0.1: use a whole number"),
        ({"A": {"type": "categorical"}}, "A: choices None: list at least two"),
        ({"A": {"type": "categorical", "choices": [1]}}, "list at least two"),
        ({"A": {"type": "categorical", "choices": [[1], [1]]}}, r"choice \[1\] comes twice"),
        ({"A": {"type": "categorical", "choices": [1, {}]}}, "use a value or a list"),
        ({"A[-1]": _float()}, "'A\\[-1\\]' is no config key"),
        ({"A b": _float()}, "is no config key"),
        ({"A[0]": _float(), "A": _float()}, r"A\[0\] is a part of A"),
    ],
)
def test_entries_that_leave_nothing_to_search(entries, message):
    with pytest.raises(SearchError, match=message):
        parse_space(entries)


def test_constraints_that_no_sample_meets_are_named():
    entries = {"A": _float(), "B": _float(), "C": _float()}
    space = parse_space(entries, ["A < B", "A > 0.5"])
    with pytest.raises(SearchError, match=r"meets the constraint 'A > 0.5': widen"):
        space.sample(RandomSampler(0))
    space = parse_space(entries, ["A < B", "B < C", "C < A"])
    with pytest.raises(SearchError, match=r"constraints 'A < B' and 'B < C' and 'C < A'"):
        space.sample(RandomSampler(0))
    with pytest.raises(SearchError, match="write a list"):
        parse_space(entries, "A < B")

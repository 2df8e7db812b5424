"""The space of a search: which config keys it varies, how far, and what must hold between them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler

from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.space.constraints import Constraint

__all__ = ["Parameter", "Space", "parse_space", "split_name"]

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)((?:\[\d+\])*)")
_TRIES = 5000  # random samples before a space is called empty


@dataclass(frozen=True)
class Parameter:
    """One thing that varies.

    Attributes:
        name: a config key, with the index of an element of its list where only that varies:
            "MODEL.RPN.IOU_THRESHOLDS[0]". Optuna's name of it too.
        distribution: Optuna's. A choice that is a list stands in it as its JSON text.
    """

    name: str
    distribution: BaseDistribution

    @property
    def key(self) -> str:
        """The config key: "MODEL.RPN.IOU_THRESHOLDS"."""
        return split_name(self.name)[0]

    @property
    def indices(self) -> tuple[int, ...]:
        """Where in the value of the key: (0,); () for the whole value."""
        return split_name(self.name)[1]

    def decode(self, stored: Any) -> Any:
        """The value for the config, from the one that Optuna keeps."""
        if isinstance(self.distribution, CategoricalDistribution) and isinstance(stored, str):
            return json.loads(stored)
        return stored

    def entry(self) -> dict[str, Any]:
        """As it stands in a search file."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return {"type": "categorical", "choices": [self.decode(c) for c in choices]}
            case FloatDistribution(low=low, high=high, log=True):
                return {"type": "log", "low": low, "high": high}
            case FloatDistribution(low=low, high=high, step=None):
                return {"type": "float", "low": low, "high": high}
            case FloatDistribution() | IntDistribution():
                kind = "int" if isinstance(self.distribution, IntDistribution) else "float"
                low, high = self.distribution.low, self.distribution.high
                return {"type": kind, "low": low, "high": high, "step": self.distribution.step}
        raise AssertionError(self.distribution)  # `parse_space` makes no other

    def extremes(self) -> list[Any]:
        """The values that bound it, as Optuna keeps them: both ends, or every choice."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return list(choices)
            case FloatDistribution() | IntDistribution():
                return [self.distribution.low, self.distribution.high]
        raise AssertionError(self.distribution)  # `parse_space` makes no other


@dataclass(frozen=True)
class Space:
    """Parameters and the constraints between them.

    Everywhere below, ``params`` are name -> value as Optuna keeps it and ``values`` name -> value
    for the config.

    Attributes:
        parameters: in the order of the file.
        constraints: all of them hold for every sample.
        fixed: values of keys that constraints name and that do not vary.
    """

    parameters: tuple[Parameter, ...]
    constraints: tuple[Constraint, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {parameter.name: parameter.distribution for parameter in self.parameters}

    def entries(self) -> dict[str, dict[str, Any]]:
        """The ``space`` of a search file."""
        return {parameter.name: parameter.entry() for parameter in self.parameters}

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {p.name: p.decode(params[p.name]) for p in self.parameters}

    def is_feasible(self, params: Mapping[str, Any]) -> bool:
        """Whether every constraint holds."""
        return not self._broken(params)

    def sample(self, sampler: RandomSampler) -> dict[str, Any]:
        """Params drawn uniformly (log-uniformly) among those that meet the constraints.

        Args:
            sampler: Optuna's; its seed is what chance there is.

        Raises:
            SearchError: none was found in 5000 tries.
        """
        unseen: Any = None  # the study and the trial, at which this sampler does not look
        broken: set[str] = set()
        always = {constraint.text for constraint in self.constraints}
        for _ in range(_TRIES):
            params = {
                name: sampler.sample_independent(unseen, unseen, name, distribution)
                for name, distribution in self.distributions.items()
            }
            now = {constraint.text for constraint in self._broken(params)}
            if not now:
                return params
            always &= now
            broken |= now
        texts = sorted(always or broken)
        raise SearchError(
            f"none of {_TRIES} random samples meets the constraint"
            f"{'s' if len(texts) > 1 else ''} {' and '.join(map(repr, texts))}: widen the space"
        )

    def _broken(self, params: Mapping[str, Any]) -> list[Constraint]:
        values = {**self.fixed, **self.values(params)}
        return [constraint for constraint in self.constraints if not constraint.holds(values)]


def split_name(name: str) -> tuple[str, tuple[int, ...]]:
    """A parameter's config key, and where in its value: "A.B[0][1]" -> "A.B", (0, 1)."""
    key, *indices = name.replace("]", "").split("[")
    return key, tuple(map(int, indices))


def parse_space(entries: Mapping[str, Any], constraints: Sequence[str] = ()) -> Space:
    """Read the ``space`` and ``constraints`` of a search file.

    Args:
        entries: name -> {type: float | log | int, low, high, step} or {type: categorical, choices}.
        constraints: conditions, see `Constraint`.

    Raises:
        SearchError: an entry that leaves nothing to search, or one of another form.
    """
    if not entries:
        raise SearchError("space is empty: name at least one config key to search over")
    if not isinstance(entries, Mapping):
        raise SearchError("space: write KEY: {type: ...} lines")
    if not isinstance(constraints, Sequence) or isinstance(constraints, str):
        raise SearchError("constraints: write a list of conditions")
    parameters = tuple(_parse_entry(str(name), entry) for name, entry in entries.items())
    _refuse_overlaps(parameters)
    return Space(parameters, tuple(Constraint(text) for text in constraints))


def _refuse_overlaps(parameters: Sequence[Parameter]) -> None:
    """An element of a list cannot vary beside the list itself."""
    for one in parameters:
        for other in parameters:
            inside = other.indices[: len(one.indices)] == one.indices
            if one is not other and one.key == other.key and inside:
                raise SearchError(f"space: {other.name} is a part of {one.name}; vary one of them")


def _parse_entry(name: str, entry: Any) -> Parameter:
    if not _NAME.fullmatch(name):
        raise SearchError(f"space: {name!r} is no config key, e.g. MODEL.RPN.IOU_THRESHOLDS[0]")
    kind = entry.get("type") if isinstance(entry, Mapping) else None
    if kind not in _KINDS:
        raise SearchError(
            f"space: {name}: give it a type, one of {', '.join(_KINDS)}, "
            "e.g. {type: float, low: 0.1, high: 0.4}"
        )
    known, build = _KINDS[kind]
    for part in entry:
        if part not in ("type", *known):
            raise SearchError(f"space: {name}: unknown {part!r}; {kind} takes {', '.join(known)}")
    return Parameter(name, build(name, entry))


def _float(name: str, entry: Mapping) -> BaseDistribution:
    low, high = _range(name, entry, (int, float))
    return FloatDistribution(float(low), float(high), step=_step(name, entry, (int, float)))


def _log(name: str, entry: Mapping) -> BaseDistribution:
    low, high = _range(name, entry, (int, float))
    if low <= 0:
        raise SearchError(f"space: {name}: low {low}: a log range begins above 0")
    return FloatDistribution(float(low), float(high), log=True)


def _int(name: str, entry: Mapping) -> BaseDistribution:
    low, high = _range(name, entry, (int,))
    return IntDistribution(low, high, step=_step(name, entry, (int,)) or 1)


def _categorical(name: str, entry: Mapping) -> BaseDistribution:
    choices = entry.get("choices")
    if not isinstance(choices, Sequence) or isinstance(choices, str) or len(choices) < 2:
        raise SearchError(f"space: {name}: choices {choices!r}: list at least two")
    for index, choice in enumerate(choices):
        if isinstance(choice, Mapping):
            raise SearchError(f"space: {name}: choice {choice!r}: use a value or a list of them")
        if choice in choices[:index]:
            raise SearchError(f"space: {name}: choice {choice!r} comes twice")
    return CategoricalDistribution([_encode(choice) for choice in choices])


_KINDS: dict[str, tuple[tuple[str, ...], Callable[[str, Mapping], BaseDistribution]]] = {
    "float": (("low", "high", "step"), _float),
    "log": (("low", "high"), _log),
    "int": (("low", "high", "step"), _int),
    "categorical": (("choices",), _categorical),
}


def _encode(choice: Any) -> Any:
    """Optuna's databases keep plain values only; texts are quoted, so that `decode` is exact."""
    return json.dumps(choice) if isinstance(choice, str | list | tuple) else choice


def _range(name: str, entry: Mapping, types: tuple[type, ...]) -> tuple[Any, Any]:
    low, high = (_number(name, entry, part, types) for part in ("low", "high"))
    if not low < high:
        raise SearchError(f"space: {name}: low {low} is not below high {high}")
    return low, high


def _step(name: str, entry: Mapping, types: tuple[type, ...]) -> Any:
    if entry.get("step") is None:
        return None
    step = _number(name, entry, "step", types)
    if not 0 < step <= entry["high"] - entry["low"]:
        raise SearchError(f"space: {name}: step {step} does not fit between low and high")
    return step


def _number(name: str, entry: Mapping, part: str, types: tuple[type, ...]) -> Any:
    value: Any = entry.get(part)
    is_number = isinstance(value, types) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        kind = "a whole number" if types == (int,) else "a number"
        hint = "; YAML wants 1.0e-4 for 1e-4" if isinstance(value, str) else ""
        raise SearchError(f"space: {name}: {part} {value!r}: use {kind}{hint}")
    return value

"""What of a model is frozen and when, by name: MODEL.FREEZE put into force.

A "layer" is here a module without its children: its own parameters and buffers.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from d2_cityscapes.errors import D2CityscapesError, nearest

__all__ = [
    "FreezeError",
    "FreezePhase",
    "FreezePlan",
    "FreezeReport",
    "find_modules",
    "freeze_modules",
    "freeze_report",
    "later_parameters_on",
    "own_parameters",
    "parents",
    "parse_schedule",
    "plan_freezing",
    "unwrap",
]

_MODULES, _SCHEDULE = "MODEL.FREEZE.MODULES", "MODEL.FREEZE.SCHEDULE"


class FreezeError(D2CityscapesError):
    """A freeze list that cannot be used, or a frozen module that moved."""


@dataclass(frozen=True)
class FreezePhase:
    """What is frozen from an iteration on.

    Attributes:
        start: the first iteration (optimizer step).
        frozen: names of the frozen layers.
    """

    start: int
    frozen: tuple[str, ...]


@dataclass(frozen=True)
class FreezePlan:
    """What is frozen when.

    Attributes:
        modules: names of the outermost modules that MODEL.FREEZE.MODULES matches.
        phases: in ascending order, each freezing less than the one before. The first begins at 0,
            and so may the second, which then holds.
    """

    modules: tuple[str, ...]
    phases: tuple[FreezePhase, ...]

    def at(self, iteration: int) -> FreezePhase:
        """The phase that an iteration is in."""
        return [phase for phase in self.phases if phase.start <= iteration][-1]


@dataclass(frozen=True)
class FreezeReport:
    """What is frozen, in numbers of parameters.

    Attributes:
        frozen_modules: names of the outermost modules that are frozen as a whole.
        groups: (name, frozen parameters, trainable parameters) of each part of the model, whoever
            froze them (Detectron2's FREEZE_AT counts too).
    """

    frozen_modules: tuple[str, ...]
    groups: tuple[tuple[str, int, int], ...]

    @property
    def frozen_parameters(self) -> int:
        return sum(frozen for _, frozen, _ in self.groups)

    @property
    def trainable_parameters(self) -> int:
        return sum(trainable for _, _, trainable in self.groups)

    def table(self) -> str:
        """One line for each group and a total."""
        rows = [*self.groups, ("total", self.frozen_parameters, self.trainable_parameters)]
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{'module':<{width}}  {'frozen':>12}  {'trainable':>12}"]
        lines += [f"{name:<{width}}  {frozen:>12,}  {train:>12,}" for name, frozen, train in rows]
        return "\n".join(lines)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a data-parallel wrapper; any other module as it is."""
    return model.module if isinstance(model, DataParallel | DistributedDataParallel) else model


def find_modules(model: nn.Module, patterns: Iterable[str], *, key: str = _MODULES) -> list[str]:
    """Names of the outermost modules that match, in the order of ``named_modules()``.

    Args:
        model: a model, data-parallel or not.
        patterns: shell-style patterns over the names of all modules; ``*`` also matches dots.
        key: the config key that the patterns stand in, for the error.

    Raises:
        FreezeError: a pattern that matches no module, with the nearest names.
    """
    names = [name for name, _ in unwrap(model).named_modules() if name]
    found: set[str] = set()
    for pattern in patterns:
        matches = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            hint = nearest(pattern.strip("*."), names, cutoff=0.4)
            raise FreezeError(f"{key}: {pattern!r} matches no module{hint}")
        found.update(matches)
    return _outermost(name for name in names if name in found)


def parse_schedule(schedule: Sequence) -> list[tuple[int, list[str]]]:
    """MODEL.FREEZE.SCHEDULE as (iteration, patterns), in ascending order.

    Raises:
        FreezeError: an entry of another form, or out of order.
    """
    entries: list[tuple[int, list[str]]] = []
    for entry in schedule:
        if not _is_entry(entry):
            raise FreezeError(
                f"{_SCHEDULE}: {entry!r} is not [iteration, [patterns]], "
                "such as [500, ['backbone.fpn_*']]"
            )
        entries.append((entry[0], list(entry[1])))
    iterations = [iteration for iteration, _ in entries]
    if iterations and min(iterations) < 0:
        raise FreezeError(f"{_SCHEDULE}: iteration {min(iterations)} is negative")
    for before, after in itertools.pairwise(iterations):
        if after <= before:
            raise FreezeError(
                f"{_SCHEDULE}: iteration {after} comes after {before}: put the entries in "
                "ascending order, all patterns of an iteration into one entry"
            )
    return entries


def plan_freezing(model: nn.Module, patterns: Sequence[str], schedule: Sequence = ()) -> FreezePlan:
    """Which layers of a model are frozen in each phase. The model stays as it is.

    Args:
        model: a model, data-parallel or not.
        patterns: MODEL.FREEZE.MODULES.
        schedule: MODEL.FREEZE.SCHEDULE.

    Raises:
        FreezeError: a pattern that matches nothing, or a malformed schedule.
    """
    modules = find_modules(model, patterns)
    frozen = _layers(model, modules)
    phases = [FreezePhase(0, tuple(frozen))]
    for start, released in parse_schedule(schedule):
        matched = set(_layers(model, find_modules(model, released, key=_SCHEDULE)))
        frozen = [name for name in frozen if name not in matched]
        phases.append(FreezePhase(start, tuple(frozen)))
    return FreezePlan(tuple(modules), tuple(phases))


def freeze_modules(
    model: nn.Module,
    patterns: Sequence[str],
    schedule: Sequence = (),
    *,
    max_iter: int | None = None,
) -> FreezeReport:
    """Turn off the gradients of every module that matches a pattern, with all that is inside.

    Call it before the optimizer and a data-parallel wrapper are made: both keep what they find.
    With a schedule, build the optimizer inside `later_parameters_on`.

    Args:
        model: a model, data-parallel or not.
        patterns: MODEL.FREEZE.MODULES.
        schedule: MODEL.FREEZE.SCHEDULE; what an entry at iteration 0 names is not frozen at all.
        max_iter: length of the training, which every entry of the schedule has to lie in.

    Raises:
        FreezeError: a pattern that matches nothing, a schedule that is malformed or has an entry
            that would not act, or nothing is left to train.
    """
    model = unwrap(model)
    plan = plan_freezing(model, patterns, schedule)
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [_without(free, own_parameters(model, phase.frozen)) for phase in plan.phases]
    for number, (start, released) in enumerate(parse_schedule(schedule)):
        if max_iter is not None and start >= max_iter:
            raise FreezeError(
                f"{_SCHEDULE}: iteration {start} never comes, SOLVER.MAX_ITER is {max_iter}"
            )
        if len(training[number + 1]) == len(training[number]):
            raise FreezeError(
                f"{_SCHEDULE}: [{start}, {released}] unfreezes nothing: {_MODULES} "
                f"{list(patterns)} freezes no parameter there, or an earlier entry unfroze it"
            )
    first = plan.at(0)
    at_first = training[plan.phases.index(first)]
    if patterns and not at_first:
        raise FreezeError(f"{_MODULES} {list(patterns)} leaves no parameter to train")
    for parameter in own_parameters(model, first.frozen):
        parameter.requires_grad_(False)
    if schedule:
        model.trains_later = _without(training[-1], at_first)  # type: ignore[assignment]
    return freeze_report(model, first.frozen)


@contextlib.contextmanager
def later_parameters_on(model: nn.Module) -> Iterator[None]:
    """Lets everything that MODEL.FREEZE.SCHEDULE will unfreeze count as trainable for a while.

    An optimizer that is built inside holds all that will ever train: its groups, its state and the
    learning rates of a scheduler are then of one form in every phase. It passes over parameters
    without gradient, neither momentum nor weight decay moves them.
    """
    later = getattr(unwrap(model), "trains_later", [])
    before = [parameter.requires_grad for parameter in later]
    for parameter in later:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, trains in zip(later, before, strict=True):
            parameter.requires_grad_(trains)


def own_parameters(model: nn.Module, layers: Iterable[str]) -> list[nn.Parameter]:
    """The parameters of the named layers."""
    model = unwrap(model)
    return [p for name in layers for p in model.get_submodule(name).parameters(recurse=False)]


def freeze_report(model: nn.Module, frozen: Sequence[str]) -> FreezeReport:
    """Count what trains now.

    Args:
        model: a model, data-parallel or not.
        frozen: names of the frozen layers.
    """
    model = unwrap(model)
    released = {name for name, _ in model.named_modules()}.difference(frozen)
    partly = {parent for name in released for parent in parents(name)}
    whole = _outermost(name for name in frozen if name not in partly)
    return FreezeReport(tuple(whole), tuple(_groups(model)))


def _is_entry(entry: object) -> bool:
    match entry:
        case [int(start), [_, *_] as patterns]:
            return type(start) is int and all(isinstance(pattern, str) for pattern in patterns)
    return False


def _layers(model: nn.Module, modules: Iterable[str]) -> list[str]:
    """Names of the modules and of all that is inside them."""
    model = unwrap(model)
    return [
        name
        for module in modules
        for name, _ in model.get_submodule(module).named_modules(prefix=module)
    ]


def _without(
    parameters: Iterable[nn.Parameter], others: Iterable[nn.Parameter]
) -> list[nn.Parameter]:
    excluded = {id(parameter) for parameter in others}
    return [parameter for parameter in parameters if id(parameter) not in excluded]


def _outermost(names: Iterable[str]) -> list[str]:
    names = list(names)
    inside = set(names)
    return [name for name in names if not inside.intersection(parents(name))]


def parents(name: str) -> Iterator[str]:
    """Names of the modules around a module or tensor, outermost first."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _groups(model: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Parameters counted by the first two parts of the name of their module."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        group = ".".join(name.split(".")[:-1][:2]) or name
        counts.setdefault(group, [0, 0])[parameter.requires_grad] += parameter.numel()
    for group, (frozen, trainable) in counts.items():
        yield group, frozen, trainable

"""Pictures of a search, each as the bytes of a PNG."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import optuna
from matplotlib import colormaps, pyplot
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization.matplotlib import plot_parallel_coordinate

from d2_cityscapes.png import figure_png
from d2_cityscapes.search.findings.importance import LEVEL, Importance, finished_trials, p_text
from d2_cityscapes.search.findings.summary import objective_label, state_text

__all__ = ["plot_search", "short_names"]

# earlier to later trials; white would not show
_TIME = ListedColormap(colormaps["Blues"](np.linspace(0.25, 1.0, 128)))
_ACTS, _NOISE, _BEST, _PRUNED, _FAILED = "tab:blue", "0.55", "tab:red", "tab:orange", "black"


def plot_search(study: optuna.Study, found: Sequence[Importance] = ()) -> dict[str, bytes]:
    """Name -> PNG: "history", "parallel_coordinates", "slices" and "importances".

    Those that there is nothing to draw for are left out.

    Args:
        study: in any state.
        found: its `importances`.
    """
    trials = finished_trials(study)
    pictures = {}
    if trials:
        pictures["history"] = _history(study, trials)
        axes = _axes_of(trials)
        if axes:
            pictures["slices"] = _slices(study, trials, axes, found)
            pictures["parallel_coordinates"] = _parallel_coordinates(study, axes)
    if found:
        pictures["importances"] = _importances(found)
    return pictures


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Name -> its last dotted parts: two, or as many as tell it from the others."""

    def ending(name: str, count: int) -> str:
        return ".".join(name.split(".")[-count:])

    short = {}
    for name in names:
        count = 2
        while count < name.count(".") + 1 and any(
            ending(other, count) == ending(name, count) for other in names if other != name
        ):
            count += 1
        short[name] = ending(name, count)
    return short


@dataclass(frozen=True)
class _Axis:
    """One parameter as a coordinate."""

    name: str
    label: str
    distribution: BaseDistribution

    @cached_property
    def choices(self) -> list[str] | None:
        """Texts of the choices of a categorical parameter, which are at 0, 1, 2 ..."""
        if isinstance(self.distribution, CategoricalDistribution):
            return [str(choice) for choice in self.distribution.choices]
        return None

    @property
    def log(self) -> bool:
        return bool(getattr(self.distribution, "log", False))

    @property
    def bounds(self) -> tuple[float, float]:
        """As wide as the space, not as the samples."""
        if self.choices is not None:
            return -0.4, len(self.choices) - 0.6
        assert not isinstance(self.distribution, CategoricalDistribution)
        low, high = float(self.distribution.low), float(self.distribution.high)  # type: ignore[attr-defined]
        return (low, high) if low < high else (low - 0.5, high + 0.5)

    def positions(self, trials: Sequence[FrozenTrial]) -> np.ndarray:
        if isinstance(self.distribution, CategoricalDistribution):
            choices = list(self.distribution.choices)
            return np.array([float(choices.index(t.params[self.name])) for t in trials])
        return np.array([float(t.params[self.name]) for t in trials])


def _axes_of(trials: Sequence[FrozenTrial]) -> list[_Axis]:
    names = [name for name in trials[0].params if all(name in t.params for t in trials)]
    short = short_names(names)
    return [_Axis(name, short[name], trials[0].distributions[name]) for name in names]


def _history(study: optuna.Study, trials: Sequence[FrozenTrial]) -> bytes:
    """Values in the order of trials, the best so far, and the trials without a value."""
    figure = Figure(figsize=(9, 3.8), dpi=110, layout="constrained")
    axis = figure.subplots()
    numbers = [trial.number for trial in trials]
    values = _values(trials)
    maximize = study.direction == StudyDirection.MAXIMIZE
    best = (np.maximum if maximize else np.minimum).accumulate(values)
    axis.step(numbers, best, where="post", color=_BEST, linewidth=1.2, label="best so far")
    axis.scatter(numbers, values, s=22, color=_ACTS, label="complete")
    others = study.get_trials(deepcopy=False)
    pruned = [t for t in others if t.state == TrialState.PRUNED and t.intermediate_values]
    if pruned:
        last = [t.intermediate_values[max(t.intermediate_values)] for t in pruned]
        marks = [t.number for t in pruned]
        label = "pruned (last report)"
        axis.scatter(marks, last, s=26, marker="x", color=_PRUNED, linewidth=1.2, label=label)
    failed = [t.number for t in others if state_text(t) == "failed"]
    if failed:
        bottom = axis.get_xaxis_transform()
        axis.scatter(
            failed, [0.02] * len(failed), s=30, marker="^", color=_FAILED, transform=bottom,
            label="failed", clip_on=False,
        )  # fmt: skip
    axis.set(xlabel="trial", ylabel=objective_label(study))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure_png(figure)


def _slices(
    study: optuna.Study,
    trials: Sequence[FrozenTrial],
    axes: Sequence[_Axis],
    found: Sequence[Importance],
) -> bytes:
    """Values over each parameter, later trials darker, under what `importances` says of it."""
    columns = min(3, len(axes))
    rows = -(-len(axes) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.6, 3.2 * rows), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    values, best = _values(trials), _best_index(study, trials)
    numbers = [trial.number for trial in trials]
    verdicts = {importance.name: importance for importance in found}
    for plot, axis in zip(grid.ravel(), axes, strict=False):
        positions = axis.positions(trials)
        if axis.choices is not None:
            positions = positions + _jitter(len(trials))
        points = plot.scatter(
            positions, values, c=numbers, cmap=_TIME, s=26, edgecolor="0.4", linewidth=0.4
        )
        plot.scatter(positions[best], values[best], s=130, marker="*", color=_BEST)
        _set_x(plot, axis)
        if axis.name in verdicts:
            one = verdicts[axis.name]
            color = _ACTS if one.acts else "0.35"
            plot.set_title(f"{one.verdict} (p {p_text(one.p_value)})", fontsize=9, color=color)
    for plot in grid.ravel()[len(axes) :]:
        plot.set_visible(False)
    for plot in grid[:, 0]:
        plot.set_ylabel(objective_label(study))
    figure.colorbar(points, ax=grid, label="trial", aspect=30, ticks=MaxNLocator(integer=True))
    return figure_png(figure)


def _parallel_coordinates(study: optuna.Study, axes: Sequence[_Axis]) -> bytes:
    """Optuna's picture, with room for our names: a line for each trial, coloured by its value."""
    label = objective_label(study)
    with warnings.catch_warnings(), pyplot.rc_context():
        warnings.simplefilter("ignore")  # experimental, and scales of parameters with one value
        plot = plot_parallel_coordinate(study, [a.name for a in axes], target_name=label)
    figure = plot.get_figure(root=True)
    assert figure is not None
    pyplot.close(figure)  # which stays, but not in pyplot's list of open ones
    figure.set_size_inches(max(7.0, 2.0 * len(axes) + 3), 4.6)
    figure.set_layout_engine("tight")
    labels = [label, *(a.label.replace(".", ".\n", 1) for a in sorted(axes, key=lambda a: a.name))]
    plot.set_xticks(range(len(labels)), labels, rotation=0, fontsize=8)
    plot.set_title("")
    maximize = study.direction == StudyDirection.MAXIMIZE
    plot.collections[0].set_cmap("viridis" if maximize else "viridis_r")  # white would not show
    return figure_png(figure)


def _importances(found: Sequence[Importance]) -> bytes:
    """Bars beside what shuffled scores give: their mean, and the limit that they rarely pass."""
    short = short_names([one.name for one in found])
    figure = Figure(figsize=(13, 1.5 + 0.5 * len(found)), dpi=110, layout="constrained")
    plots = figure.subplots(1, 3, sharey=True)
    places = np.arange(len(found))[::-1]
    titles = (
        ("fANOVA: part of the variance (decides)", [one.fanova for one in found]),
        ("trend: part that rises or falls (decides)", [one.trend for one in found]),
        ("PED-ANOVA: the best tenth beside all", [one.ped_anova for one in found]),
    )
    colors = [_ACTS if one.acts else _NOISE for one in found]
    limit = f"shuffled scores, {1 - LEVEL:.0%}"
    for plot, (title, scores) in zip(plots, titles, strict=True):
        plot.barh(places, [s.threshold for s in scores], height=0.8, color="0.9", label=limit)
        plot.barh(places, [s.value for s in scores], height=0.42, color=colors)
        plot.plot([s.null_mean for s in scores], places, "|", color="0.3", markersize=14,
                  label="shuffled scores, mean")  # fmt: skip
        plot.set_title(title, fontsize=10, loc="left")
        plot.set_xlim(left=0)
        plot.xaxis.set_major_locator(MaxNLocator(6))
        plot.spines[["top", "right"]].set_visible(False)
    plots[0].set_yticks(places, [f"{short[one.name]}\n{one.verdict}" for one in found])
    plots[0].tick_params(axis="y", labelsize=8)
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure_png(figure)


def _set_x(plot: Axes, axis: _Axis) -> None:
    if axis.choices is not None:
        plot.set_xticks(range(len(axis.choices)), [_clipped(c) for c in axis.choices], fontsize=8)
    elif axis.log:
        plot.set_xscale("log")
    low, high = axis.bounds
    # a little wider, for the points on the bounds
    wider = (high / low) ** 0.03 if axis.log else (high - low) * 0.03
    plot.set_xlim(*((low / wider, high * wider) if axis.log else (low - wider, high + wider)))
    plot.set_xlabel(axis.label, fontsize=9)
    plot.grid(alpha=0.25)
    plot.spines[["top", "right"]].set_visible(False)


def _jitter(count: int) -> np.ndarray:
    """Small shifts, the same every time, that keep points of one choice apart."""
    return (np.arange(count) * 0.618 % 1 - 0.5) * 0.3


def _clipped(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:11]}...{text[-10:]}"


def _values(trials: Sequence[FrozenTrial]) -> np.ndarray:
    return np.array([trial.value for trial in trials], dtype=float)


def _best_index(study: optuna.Study, trials: Sequence[FrozenTrial]) -> int:
    pick: Callable = np.argmax if study.direction == StudyDirection.MAXIMIZE else np.argmin
    return int(pick(_values(trials)))

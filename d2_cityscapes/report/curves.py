"""Loss curves from the metrics.json that Detectron2 writes while it trains."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import write_atomically
from d2_cityscapes.png import figure_png

__all__ = ["draw_loss_curves", "draw_losses", "loss_curves_png", "read_losses"]

_logger = logging.getLogger(__name__)

_LARGEST = 1e30  # of what can be drawn
_TOTAL = "total_loss"
_VALIDATION = "val/"  # before the name of a training loss


def read_losses(path: str | Path) -> dict[str, dict[int, float]]:
    """Loss name -> iteration -> value, "total_loss" first.

    Losses on validation images have "val/" before their names. Lines without losses (evaluations)
    are skipped, and so are a last line cut short and, with a warning that counts them, lines that
    are no JSON object or have losses that are no numbers. What follows an iteration that a resumed
    run logged again was lost with the stop, and does not count.

    Args:
        path: a metrics.json, one JSON object a line.

    Raises:
        D2CityscapesError: the file cannot be read.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise D2CityscapesError(f"{path}: cannot be read as metrics of a training") from error
    losses: dict[str, dict[int, float]] = {_TOTAL: {}}
    wrong = []
    for number, line in enumerate(lines, start=1):
        try:
            iteration, logged = _read_line(line)
        except (ValueError, TypeError, RecursionError):
            wrong.append(number)
            continue
        for name, value in logged.items():
            values = losses.setdefault(name, {})
            while values and next(reversed(values)) >= iteration:
                values.popitem()
            values[iteration] = value
    if wrong[-1:] == [len(lines)]:  # a training that goes on, or was killed
        wrong.pop()
    if wrong:
        _logger.warning(
            "%s: skipped %d lines that are no losses, the first of them line %d",
            path, len(wrong), wrong[0],
        )  # fmt: skip
    return {name: values for name, values in losses.items() if values}


def _read_line(line: str) -> tuple[int, dict[str, float]]:
    """Iteration and losses of a line of a metrics.json; TypeError or ValueError of another."""
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise TypeError
    losses = {
        name: value
        for name, value in entry.items()
        if name.removeprefix(_VALIDATION).startswith((_TOTAL, "loss"))
    }
    iteration = entry.get("iteration")
    if iteration is None or not losses:
        return 0, {}
    if type(iteration) is not int or abs(iteration) > _LARGEST:
        raise TypeError
    if any(type(value) not in (int, float) or abs(value) > _LARGEST for value in losses.values()):
        raise TypeError
    return iteration, losses


def draw_loss_curves(runs: Mapping[str, str | Path], output: str | Path) -> bool:
    """Write the loss curves of several trainings as one PNG, whole or not at all.

    Args:
        runs: name of a training, e.g. "stage1" -> its metrics.json.
        output: the picture.

    Returns:
        Whether there was any loss to draw; without, nothing is written.
    """
    picture = loss_curves_png(runs)
    if picture:
        write_atomically(output, [picture])
    return bool(picture)


def loss_curves_png(runs: Mapping[str, str | Path]) -> bytes:
    """The picture of `draw_loss_curves` as bytes; empty where no training logged a loss."""
    curves = {name: losses for name, path in runs.items() if (losses := read_losses(path))}
    if not curves:
        return b""
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(6.4 * columns, 3.6 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, losses) in zip(axes, curves.items(), strict=False):
        draw_losses(axis, losses)
        axis.set_title(name, loc="left", fontweight="bold")
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    return figure_png(figure)


def draw_losses(axis: Axes, losses: Mapping[str, Mapping[int, float]]) -> None:
    """Draw a line for each loss, and in the same colour a dashed one for its validation.

    Args:
        axis: where to draw.
        losses: from `read_losses`.
    """
    names = dict.fromkeys(name.removeprefix(_VALIDATION) for name in losses)
    parts = [name for name in names if name != _TOTAL]
    colors = {_TOTAL: "black"} | {name: f"C{number}" for number, name in enumerate(parts)}
    for name in names:
        total = name == _TOTAL
        for logged, style in ((name, "solid"), (_VALIDATION + name, "dashed")):
            values = losses.get(logged, {})
            if not values:
                continue
            iterations = sorted(values)
            label = "total" if total else name.removeprefix("loss_")
            axis.plot(
                iterations,
                [values[i] for i in iterations],
                label=label + (", validation" if logged != name else ""),
                color=colors[name],
                linestyle=style,
                linewidth=2.0 if total else 1.1,
                marker="o" if len(iterations) == 1 else None,
            )
    axis.set_xlabel("iteration")
    axis.set_ylabel("loss")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="upper right")

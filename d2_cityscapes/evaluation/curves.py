"""Loss curves from the metrics.json that Detectron2 writes while it trains."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import write_atomically

__all__ = ["draw_loss_curves", "loss_curves_png", "read_losses"]

_TOTAL = "total_loss"


def read_losses(path: str | Path) -> dict[str, dict[int, float]]:
    """Loss name -> iteration -> value, "total_loss" first.

    Lines without losses (evaluations) and a last line cut short are skipped. Where a resumed run
    logged an iteration again, the later line counts.

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
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or _TOTAL not in entry or "iteration" not in entry:
            continue
        for name, value in entry.items():
            if name == _TOTAL or name.startswith("loss"):
                losses.setdefault(name, {})[entry["iteration"]] = value
    return {name: values for name, values in losses.items() if values}


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
        for loss, values in losses.items():
            iterations = sorted(values)
            total = loss == _TOTAL
            axis.plot(
                iterations,
                [values[i] for i in iterations],
                label="total" if total else loss.removeprefix("loss_"),
                color="black" if total else None,
                linewidth=2.0 if total else 1.1,
                marker="o" if len(iterations) == 1 else None,
            )
        axis.set_title(name, loc="left", fontweight="bold")
        axis.set_xlabel("iteration")
        axis.set_ylabel("loss")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()

"""results.json: every number with its protocol, dataset, image and class count."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from d2_cityscapes import __version__
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import file_sha256, write_json

__all__ = [
    "AUGMENTED",
    "ResultRow",
    "ResultsError",
    "add_rows",
    "add_weights",
    "make_rows",
    "package_versions",
    "percent_text",
    "read_results",
    "write_results",
]

AUGMENTED = "_TTA"  # behind the task of what was scored with TEST.AUG
_LARGEST = 1e9  # of a number in percent, far beyond any; nan and infinity are not below it
_PACKAGES = (
    "torch",
    "torchvision",
    "detectron2",
    "numpy",
    "pillow",
    "pycocotools",
    "cityscapesscripts",
)


class ResultsError(D2CityscapesError):
    """A results.json that is missing or not one of ours."""


@dataclass(frozen=True)
class ResultRow:
    """One number.

    Attributes:
        task: "bbox", "segm", "segm_cityscapes", "sem_seg" or "panoptic_seg"; with "_TTA" behind
            where the model was tested with TEST.AUG.
        metric: e.g. "AP50" or "PQ-car".
        value: percent; None where no class of the metric was seen.
        protocol: whose rules; numbers of different protocols do not compare.
        dataset: name of the scored dataset.
        images: number of scored images.
        classes: number of classes in the mean.
    """

    task: str
    metric: str
    value: float | None
    protocol: str
    dataset: str
    images: int
    classes: int


def make_rows(
    task: str,
    scores: Mapping[str, tuple[float | None, int]],
    *,
    protocol: str,
    dataset: str,
    images: int,
) -> list[ResultRow]:
    """Rows of one task under one protocol, from metric -> value and number of classes."""
    return [
        ResultRow(task, metric, _finite(value), protocol, dataset, images, classes)
        for metric, (value, classes) in scores.items()
    ]


def write_results(
    path: str | Path,
    rows: Sequence[ResultRow],
    *,
    seconds: float,
    config: str | None = None,
    weights: str | Path | None = None,
    command: Sequence[str] | None = None,
    unscored: Mapping[str, int] | None = None,
    computed_on: Mapping[str, str] | None = None,
) -> None:
    """Write results.json, whole or not at all.

    Args:
        path: the file.
        rows: the numbers.
        seconds: what the evaluation took.
        config: text of the config that made them, e.g. ``cfg.dump()``.
        weights: file of the weights that made them. One that is not on this disk is left out.
        command: the command line; None for that of this process.
        unscored: dataset without truth -> number of images that were predicted, for a submission.
        computed_on: the device and its arithmetic, by name.
    """
    document: dict[str, Any] = {
        "results": [asdict(row) for row in rows],
        "config_sha256": None if config is None else hashlib.sha256(config.encode()).hexdigest(),
        "weights_sha256": _weights_sha256(weights),
        "versions": package_versions(),
        "command": shlex.join(sys.argv if command is None else command),
        "seconds": round(seconds, 3),
    }
    if computed_on:
        document["computed_on"] = dict(computed_on)
    if unscored:
        document["unscored_images"] = dict(unscored)
    write_json(path, document)


def add_rows(path: str | Path, rows: Sequence[ResultRow], *, seconds: float) -> None:
    """Add rows to a results.json of the same weights.

    Args:
        path: the file.
        rows: of another evaluation.
        seconds: what that took, added to those of the file.
    """
    before, document = read_results(path)
    document["seconds"] = round(document.get("seconds", 0) + seconds, 3)
    write_json(path, {"results": [asdict(row) for row in (*before, *rows)], **document})


def add_weights(
    path: str | Path, weights: str | Path, training_images: Mapping[str, Any] | None = None
) -> None:
    """Enter the checksum of the weights into a results.json that was written without.

    For a training run, which evaluates its model while no file of these very weights is named yet.

    Args:
        path: the file.
        weights: file of the weights.
        training_images: how many images they were trained on, of how many, and why others were left
            out; see `d2_cityscapes.data.training_set.TrainingImages`.
    """
    rows, document = read_results(path)
    if training_images is not None:
        document["training_images"] = dict(training_images)
    document["weights_sha256"] = _weights_sha256(weights)
    write_json(path, {"results": [asdict(row) for row in rows], **document})


def read_results(path: str | Path) -> tuple[list[ResultRow], dict[str, Any]]:
    """The rows of a results.json and its other fields.

    Raises:
        ResultsError: no such file, or not in the form that `write_results` gives it.
    """
    try:
        document = json.loads(Path(path).read_text())
        rows = [_checked_row(row) for row in document.pop("results")]
        if not isinstance(document.get("versions", {}), dict):
            raise TypeError("versions is no object")
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(f"{path}: not a results.json ({error}); evaluate again") from error
    return rows, document


def _checked_row(row: Mapping[str, Any]) -> ResultRow:
    """TypeError where a field has another type than `ResultRow` says."""
    found = ResultRow(**{field.name: row[field.name] for field in fields(ResultRow)})
    for name, value in asdict(found).items():
        if name == "value":
            kind, good = "number", value is None or _is_number(value)
        elif name in ("images", "classes"):
            kind, good = "count", type(value) is int and value >= 0
        else:
            kind, good = "text", isinstance(value, str)
        if not good:
            raise TypeError(f"{name} {str(value)[:40]!r} is no {kind}")
    return found


def _is_number(value: object) -> bool:
    """Whether something from a JSON is finite; True and False are no numbers."""
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST  # type: ignore[operator]


def percent_text(value: float | None, digits: int = 2) -> str:
    """The value of a row in a table; "-" where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _weights_sha256(path: str | Path | None) -> str | None:
    """None where there are no weights, or not on this disk."""
    return file_sha256(path) if path is not None and Path(path).is_file() else None


def package_versions() -> dict[str, str]:
    """Versions of Python, of this package, and of what the numbers depend on."""
    versions = {"python": platform.python_version(), "d2_cityscapes": __version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions

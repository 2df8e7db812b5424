"""What of a stage that has begun must not change: its settings, and the weights it began with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from d2_cityscapes.config import leaves
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import file_sha256, write_json
from d2_cityscapes.modeling.anchors.generator import resolve_anchors
from d2_cityscapes.run_folder import CONFIG

__all__ = [
    "StageChangedError",
    "check_first_weights",
    "check_settings",
    "write_first_weights",
]

_RECORD = "first_weights.json"
_SHOWN = 3
# Settings of the machine, and of what is shown or kept on the way: no weight and no number of the
# last evaluation follows from them. MODEL.WEIGHTS is compared by content.
_FREE = (
    "CUDNN_BENCHMARK",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.PREFETCH",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "TEST.NUM_PICTURES",
    "TEST.SUBMISSION",
    "VIS_PERIOD",
)
_ANCHORS = tuple(
    f"MODEL.ANCHOR_GENERATOR.{key}" for key in ("SIZES", "ASPECT_RATIOS", "KMEANS.SOURCE")
)


class StageChangedError(D2CityscapesError):
    """A stage that has begun, asked to go on as another one."""


def check_settings(folder: Path, cfg: CfgNode) -> None:
    """Compare a config with config.yaml of a stage that has begun.

    A key that only one of them has, as after an update of this package, is not compared. Neither
    are anchors whose file is missing.

    Args:
        folder: OUTPUT_DIR of the stage.
        cfg: what is asked for now.

    Raises:
        StageChangedError: settings differ that weights or results follow from; all are in the
            details.
    """
    before = _read_config(folder / CONFIG)
    free = {*_FREE}
    source = cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE
    if source and not Path(source).is_file():
        free.update(_ANCHORS)
    else:
        cfg = resolve_anchors(cfg)
    now = dict(leaves(yaml.safe_load(cfg.dump())))
    if before.get("MODEL.DEVICE") != now["MODEL.DEVICE"]:
        free.add("SOLVER.AMP.ENABLED")  # follows the device
    changed = [
        f"{key} was {before[key]!r}, now {value!r}"
        for key, value in now.items()
        if key in before and key not in free and before[key] != value
    ]
    if changed:
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise StageChangedError(
            f"{folder} has begun with other settings: {'; '.join(changed[:_SHOWN])}{more}. Give "
            "the same again, delete the folder to train it again, or take another --output-dir",
            details=changed if more else (),
        )


def write_first_weights(folder: Path, weights: str) -> None:
    """Note down which weights a stage begins with.

    Args:
        folder: OUTPUT_DIR of the stage.
        weights: its MODEL.WEIGHTS.
    """
    write_json(folder / _RECORD, _identity(weights))


def check_first_weights(folder: Path, weights: str) -> None:
    """Compare with what `write_first_weights` noted down, if it has.

    Raises:
        StageChangedError: the weights are others, or the note is damaged.
    """
    record = folder / _RECORD
    if not record.is_file():
        return
    try:
        before = {key: json.loads(record.read_text())[key] for key in ("weights", "sha256")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StageChangedError(
            f"{record}: does not say which weights the stage began with ({error}); delete {folder} "
            "to train it again"
        ) from error
    now = _identity(weights)
    key = "sha256" if before["sha256"] and now["sha256"] else "weights"
    if before[key] != now[key]:
        raise StageChangedError(
            f"{folder} has begun with other weights ({before['weights'] or 'none'}) than "
            f"{weights or 'none'} now: delete the folder to train it again"
        )


def _identity(weights: str) -> dict[str, str | None]:
    """Of a file on this disk, its content counts; of anything else, its address."""
    checksum = file_sha256(weights) if Path(weights).is_file() else None
    return {"weights": weights, "sha256": checksum}


def _read_config(path: Path) -> dict[str, Any]:
    """Key -> value; what a killed process left of it, which can be nothing."""
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    settings = dict(leaves(tree)) if isinstance(tree, Mapping) else {}
    if settings and "VERSION" not in settings:  # near the end of every config
        settings.popitem()  # the last value may be cut short
    return settings

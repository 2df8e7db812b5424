"""What of a config a run may not change when it resumes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from detectron2.config import CfgNode

from d2_cityscapes.modeling.freezing.freeze import FreezeError, parse_schedule

__all__ = ["check_freeze_settings", "freeze_settings"]

logger = logging.getLogger(__name__)


def freeze_settings(cfg: CfgNode) -> dict:
    """MODEL.FREEZE in plain values, for a checkpoint: equal wherever the two freeze the same."""
    freeze = cfg.MODEL.FREEZE
    return {
        "MODULES": sorted(freeze.MODULES),
        "SCHEDULE": [[start, sorted(names)] for start, names in parse_schedule(freeze.SCHEDULE)],
        "NORM_EVAL": freeze.NORM_EVAL,
    }


def check_freeze_settings(saved: Mapping | None, cfg: CfgNode, checkpoint: str) -> None:
    """Refuse to resume a run that froze other modules than the config does.

    Its optimizer holds other parameters, and what was frozen until now would have moved.

    Args:
        saved: `freeze_settings` of the run that wrote the checkpoint; None where it has none.
        checkpoint: file, for the message.

    Raises:
        FreezeError: the two differ.
    """
    if saved is None:
        logger.warning("%s does not say what was frozen: MODEL.FREEZE is not compared", checkpoint)
        return
    asked = freeze_settings(cfg)
    nothing_frozen = not saved["MODULES"] and not asked["MODULES"]  # NORM_EVAL is for frozen ones
    if saved == asked or nothing_frozen:
        return
    raise FreezeError(
        f"{checkpoint} was trained with MODEL.FREEZE {_text(saved)}, and cannot be resumed with "
        f"{_text(asked)}: to go on from its weights, train in a new OUTPUT_DIR with "
        f"MODEL.WEIGHTS {checkpoint}"
    )


def _text(settings: Mapping) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())

"""Steps whose losses or gradients are not finite: left out and counted, up to too many."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from d2_cityscapes.engine.checkpoints.load_report import shortened
from d2_cityscapes.errors import D2CityscapesError

__all__ = ["GRADIENTS", "PREDICTIONS", "NonFiniteError", "SkippedSteps", "Trouble"]

logger = logging.getLogger(__name__)

GRADIENTS, PREDICTIONS = "gradients", "predictions"


class NonFiniteError(D2CityscapesError, FloatingPointError):
    """Losses or gradients that are infinite or NaN, more often than SOLVER.MAX_SKIPPED_STEPS.

    Its details are one line for each of these steps, with its images. Detectron2's trainer raises
    a plain FloatingPointError.
    """


@dataclass(frozen=True)
class Trouble:
    """What was not finite in a step on one rank.

    Attributes:
        what: names of losses, `GRADIENTS`, or `PREDICTIONS` where the model itself found it.
        files: images of its batches.
    """

    what: tuple[str, ...]
    files: tuple[str, ...]


class SkippedSteps:
    """Counts steps that are left out, and says when there are too many in a row.

    Attributes:
        total: steps left out so far.
    """

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: SOLVER.MAX_SKIPPED_STEPS, steps in a row that may be left out.
        """
        self._limit = limit
        self._streak: list[str] = []  # a line for each of the last steps
        self.total = 0

    def add(self, iteration: int, troubles: Sequence[Trouble]) -> None:
        """Note a step that is left out, with what was found on the ranks that found something.

        Raises:
            NonFiniteError: it is one too many.
        """
        # Gradients are those of all ranks: what a rank found in its own images is the reason.
        troubles = [trouble for trouble in troubles if trouble.what != (GRADIENTS,)] or troubles
        names = sorted({name for trouble in troubles for name in trouble.what})
        files = list(dict.fromkeys(file for trouble in troubles for file in trouble.files))
        what = f"iteration {iteration}: {', '.join(names)} not finite"
        images = f"; images: {shortened(files)}" if files else ""
        self.total += 1
        self._streak.append(f"{what}{'; images: ' if files else ''}{', '.join(files)}")
        if len(self._streak) > self._limit:
            raise NonFiniteError(
                f"{what}{self._history()}{images}. Lower SOLVER.BASE_LR, set "
                "SOLVER.CLIP_GRADIENTS, or look at these images",
                details=self._streak,
            )
        logger.warning(
            "%s: step left out, %d in a row, %d in all%s",
            what,
            len(self._streak),
            self.total,
            images,
        )

    def end_streak(self) -> None:
        """Note a step that was taken."""
        self._streak.clear()

    def state_dict(self) -> dict:
        return {"total": self.total, "streak": list(self._streak)}

    def load_state_dict(self, state: dict) -> None:
        self.total, self._streak = state["total"], list(state["streak"])

    def _history(self) -> str:
        if not self._limit:
            return ""
        return f", as in the {self._limit} steps before (SOLVER.MAX_SKIPPED_STEPS)"

"""How far a run of several stages is, in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

__all__ = ["StageProgress", "duration_text"]


def duration_text(seconds: float) -> str:
    """ "45 s", "2 min 05 s", "3 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class StageProgress:
    """Times the stages of one call, and guesses what remains from the steps that were trained.

    A step of a later stage may take longer: the guess is of the pace so far, and says so. Stages
    that were there already say nothing about the pace.
    """

    def __init__(self, steps: Sequence[int], *, now: Callable[[], float] = time.monotonic) -> None:
        """``steps``: optimizer steps of each stage; ``now`` gives seconds."""
        self._steps, self._now = list(steps), now
        self._start = self._stage_start = now()
        self._trained = 0
        self._seconds = 0.0

    def begin(self, index: int) -> str:
        """The ``index``-th stage begins: its place, time so far and what is to come."""
        self._stage_start = self._now()
        text = f"{index + 1} of {len(self._steps)}"
        if index:
            text += f", {duration_text(self._stage_start - self._start)} so far"
        if self._trained:
            left = self._seconds / self._trained * sum(self._steps[index:])
            text += f", {duration_text(left)} to go if steps take as long as until now"
        return text

    def end(self, index: int) -> str:
        """The stage was trained and scored: the time that it took."""
        seconds = self._now() - self._stage_start
        self._trained += self._steps[index]
        self._seconds += seconds
        return duration_text(seconds)

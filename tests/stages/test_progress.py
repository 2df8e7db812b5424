"""What is said of how far a run of several stages is."""

from __future__ import annotations

import pytest

from d2_cityscapes.stages.progress import StageProgress, duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (12000, "3 h 20 min"),
    ],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


def test_what_remains_follows_from_the_steps_that_were_trained():
    clock = [100.0]
    progress = StageProgress([40, 10, 50], now=lambda: clock[0])
    assert progress.begin(0) == "1 of 3"
    clock[0] += 80  # two seconds a step
    assert progress.end(0) == "1 min 20 s"
    clock[0] += 5  # anchors
    assert progress.begin(1) == (
        "2 of 3, 1 min 25 s so far, 2 min 00 s to go if steps take as long as until now"
    )
    clock[0] += 40  # four
    assert progress.end(1) == "40 s"
    assert progress.begin(2).endswith(
        "2 min 05 s so far, 2 min 00 s to go if steps take as long as until now"
    )


def test_stages_that_were_there_already_say_nothing_of_the_pace():
    clock = [0.0]
    progress = StageProgress([40, 10], now=lambda: clock[0])
    clock[0] += 2
    assert progress.begin(1) == "2 of 2, 2 s so far"

"""By what the files that predicting writes are known again: it may write those anew."""

from __future__ import annotations

from pathlib import Path

from d2_cityscapes.engine.prediction.videos import VIDEO_ENDINGS, comment_of_video
from d2_cityscapes.png import comment_of

__all__ = ["DRAWN_SUFFIX", "MARK", "VIDEO_SUFFIX", "is_drawn"]

DRAWN_SUFFIX = "_drawn.jpg"
VIDEO_SUFFIX = "_drawn.mp4"
MARK = "made by d2_cityscapes tools/predict.py"  # a comment in every drawing, map and video


def is_drawn(path: Path) -> bool:
    """Whether a drawing, map or video was written by this command, which may write it anew."""
    if path.suffix.lower() in VIDEO_ENDINGS:
        return path.name.endswith(VIDEO_SUFFIX) and comment_of_video(path) == MARK
    return comment_of(path) == MARK

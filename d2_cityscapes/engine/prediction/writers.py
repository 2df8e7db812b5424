"""What becomes of a prediction: drawings, maps of ids, videos; see `coco_files` for JSON.

Shape letters: H, W pixels of a picture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from d2_cityscapes.drawing.overlay import draw_instance_ids
from d2_cityscapes.engine.prediction.marks import DRAWN_SUFFIX, MARK, VIDEO_SUFFIX
from d2_cityscapes.engine.prediction.videos import OpenVideo, VideoWriter
from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_output
from d2_cityscapes.files import open_atomically
from d2_cityscapes.labels import INSTANCE_DIVISOR, LabelTable
from d2_cityscapes.png import write_picture
from d2_cityscapes.sources.names import IDS_SUFFIX

__all__ = ["FileWriter", "Seen", "Writer", "drawing", "id_map", "video_writer"]


@dataclass(frozen=True)
class Seen:
    """A picture and what the model sees in it.

    Attributes:
        name: of its results, a path without ending.
        file_name: what the picture is called, for lists of images.
        image: (H, W, 3) uint8 RGB.
        output: of the model.
        table: the classes.
        score_threshold: least score of an instance that is drawn, where the model does not fuse.
        pts: of a frame, its time in the video.
    """

    name: str
    file_name: str
    image: np.ndarray
    output: dict[str, Any]
    table: LabelTable
    score_threshold: float = 0.5
    pts: int = 0

    @cached_property
    def ids(self) -> np.ndarray:
        """(H, W) int32 instance ids."""
        return ids_of_output(self.output, self.table, score_threshold=self.score_threshold)

    @cached_property
    def drawn(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the picture under its prediction."""
        return draw_instance_ids(self.image, self.ids, self.table, width=self.image.shape[1])

    @property
    def has_instances(self) -> bool:
        return bool((self.ids >= INSTANCE_DIVISOR).any())


class Writer(Protocol):
    """Takes one prediction after another."""

    def write(self, seen: Seen) -> None: ...


def drawing(seen: Seen) -> np.ndarray:
    """(H, W, 3) uint8 RGB of <name>_drawn.jpg."""
    return seen.drawn


def id_map(seen: Seen) -> np.ndarray:
    """(H, W) uint16 of <name>_instanceIds.png."""
    return seen.ids.astype(np.uint16)


class FileWriter:
    """A file for each prediction, marked as the command's own."""

    SUFFIXES: ClassVar = {"drawn": DRAWN_SUFFIX, "ids": IDS_SUFFIX}
    _CONTENT: ClassVar = {"drawn": drawing, "ids": id_map}

    def __init__(self, output: Path, kind: str) -> None:
        """
        Args:
            output: the folder.
            kind: "drawn" or "ids".
        """
        self._output, self._suffix = output, self.SUFFIXES[kind]
        self._content = self._CONTENT[kind]

    def write(self, seen: Seen) -> None:
        path = self._output / f"{seen.name}{self._suffix}"
        write_picture(path, self._content(seen), comment=MARK)


class _VideoOfDrawings:
    def __init__(self, writer: VideoWriter) -> None:
        self._writer = writer

    def write(self, seen: Seen) -> None:
        self._writer.write(seen.drawn, seen.pts)


@contextlib.contextmanager
def video_writer(output: Path, name: str, video: OpenVideo) -> Iterator[Writer]:
    """<name>_drawn.mp4, the drawings with the times of a video; whole, or not there.

    Args:
        output: the folder.
        name: of the results.
        video: that is drawn over.
    """
    with open_atomically(output / f"{name}{VIDEO_SUFFIX}") as file:
        writer = VideoWriter(file, rate=video.rate, time_base=video.time_base, comment=MARK)
        try:
            yield _VideoOfDrawings(writer)
        except BaseException:
            with contextlib.suppress(Exception):  # of a file that nobody will see
                writer.close()
            raise
        writer.close()

"""Videos and cameras as pictures with times, and pictures with times as a video, by PyAV.

Shape letters: H, W pixels of a picture as it is shown.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from d2_cityscapes.dependencies import import_extra
from d2_cityscapes.engine.prediction.pictures import MOST_PIXELS, PictureError
from d2_cityscapes.errors import D2CityscapesError

__all__ = ["VIDEO_ENDINGS", "Frame", "OpenVideo", "Video", "VideoWriter", "comment_of_video"]

VIDEO_ENDINGS = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv",
    ".flv", ".3gp", ".ogv",
)  # fmt: skip

# By content, whatever the ending. Playlists and the like would open other files, and addresses.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,asf,flv,ogg"
_CAMERAS = "v4l2"
_CODECS = ("libx264", "mpeg4")  # the first that there is
_OPTIONS = {
    # constant quality; pictures in the order of their times, which not all readers sort
    "libx264": {"crf": "20", "preset": "veryfast", "bf": "0"},
    "mpeg4": {"q:v": "3"},
}
_USUAL_RATE = Fraction(25)  # pictures a second, where a file does not say


@dataclass(frozen=True)
class Video:
    """Where pictures with times come from.

    Attributes:
        path: a file, or the device of a camera.
        live: whether it is a camera, which has no end.
    """

    path: str
    live: bool = False

    def check(self) -> None:
        """Open it once, before anything expensive starts.

        Raises:
            D2CityscapesError: a camera that `OpenVideo.of` refuses, or PyAV is missing.
        """
        import_extra("av", f"{self.path}: a video", extra="video")
        if self.live:
            with OpenVideo.of(self):
                pass


class Frame(NamedTuple):
    """A picture of a video.

    Attributes:
        number: from 0, of those that could be decoded.
        pts: when it is shown, in units of the video's time_base.
        pixels: (H, W, 3) uint8 RGB, upright.
    """

    number: int
    pts: int
    pixels: np.ndarray


@dataclass
class OpenVideo:
    """A video that is read from its beginning, once.

    Attributes:
        source: what was opened.
        length: how many pictures the file says it has; 0 where it does not.
        rate: pictures a second, on average.
        time_base: seconds that a unit of the times is.
        problems: lines about what could not be decoded, complete when all frames were read.
    """

    source: Video
    container: Any
    length: int
    rate: Fraction
    time_base: Fraction
    problems: list[str] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def of(cls, source: Video) -> Iterator[OpenVideo]:
        """Open a file or camera for the time of the block.

        Raises:
            PictureError: missing, in use, without pictures, or nothing that can be read.
        """
        av = import_extra("av", f"{source.path}: a video", extra="video")
        with contextlib.ExitStack() as stack:
            with _errors(source):
                container = stack.enter_context(_open(av, source))
                if not container.streams.video:
                    raise PictureError(f"{source.path}: has no pictures, only sound or text")
                stream = container.streams.video[0]
                height, width = stream.height or 0, stream.width or 0
            if height < 1 or width < 1 or height * width > MOST_PIXELS:
                raise PictureError(
                    f"{source.path}: says that it is {height} x {width} (H x W) pixels; videos "
                    f"have from 1 to {MOST_PIXELS}"
                )
            rate = Fraction(stream.average_rate or stream.guessed_rate or _USUAL_RATE)
            length = 0 if source.live else stream.frames or _by_duration(container, rate)
            yield cls(source, container, length, rate, Fraction(stream.time_base))

    def frames(self) -> Iterator[Frame]:
        """The pictures that can be decoded, one at a time, with ascending times.

        What cannot be decoded is noted down in `problems`, and the rest goes on.
        """
        av = import_extra("av", f"{self.source.path}: a video", extra="video")
        step = max(round(1 / (self.rate * self.time_base)), 1)  # for pictures that have no time
        begin: int | None = None
        last = number = lost = 0
        where = ""
        packets = _packets(self.container)
        while packets.gi_frame is not None:  # reading itself may fail too, which ends it
            try:
                decoded = next(packets, _NOTHING).decode()
            except (av.error.FFmpegError, ValueError) as error:
                where = where or f"the first after {self._seconds(last):.2f} s ({_reason(error)})"
                lost += 1
                continue
            for own in decoded:
                pts = own.pts if own.pts is not None else last + step * bool(number)
                begin = pts if begin is None else begin
                pts -= begin if self.source.live else 0
                last = pts if not number or pts > last else last + 1
                yield Frame(number, last, _upright(own))
                number += 1
        if lost:
            parts = f"{lost} part{'s' * (lost > 1)} cannot be decoded, {where}"
            self.problems.append(f"{self.source.path}: {parts}; {number} pictures could")
        elif not number:
            self.problems.append(f"{self.source.path}: holds no picture that can be decoded")
        elif self._is_cut(number, last + step - (begin or 0), step):
            text = f"ends after {self._seconds(last + step - (begin or 0)):.2f} s, "
            text += f"{number} pictures of about {self.length}: its end is lost"
            self.problems.append(f"{self.source.path}: {text}")

    def _seconds(self, units: int) -> float:
        return float(units * self.time_base)

    def _is_cut(self, number: int, played: int, step: int) -> bool:
        """Whether a file says that it is longer than it was.

        One whose frames are counted has lost some behind the last; others have lost a tenth, for
        the last picture may stand long, and sound may go on.
        """
        stream = self.container.streams.video[0]
        if self.source.live or not (stream.duration or self.container.duration):
            return False
        said = stream.duration or self.container.duration / (1_000_000 * self.time_base)
        if stream.frames:
            return number < stream.frames and said - played > 2 * step
        return said - played > max(said / 10, 4 * step)


class VideoWriter:
    """Writes pictures with their times as an MP4 with H.264.

    Pictures of an odd width or height get one more column or row, which H.264 asks for.
    """

    def __init__(
        self, file: BinaryIO, *, rate: Fraction, time_base: Fraction, comment: str
    ) -> None:
        """
        Args:
            file: open to be written, read and sought in.
            rate: pictures a second, on average.
            time_base: seconds that a unit of the times is.
            comment: goes with it, for `comment_of_video`.
        """
        av = import_extra("av", "a video", extra="video")
        self._av = av
        self._container = av.open(file, "w", format="mp4")
        self._container.metadata["comment"] = comment
        self._codec = next(name for name in _CODECS if name in av.codecs_available)
        self._rate, self._time_base = rate, time_base
        self._stream: Any = None

    def write(self, pixels: np.ndarray, pts: int) -> None:
        """Append (H, W, 3) uint8 RGB, of the size of the first, shown from `pts` on."""
        height, width = pixels.shape[:2]
        even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._begun(even.shape[0], even.shape[1])
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame.pts, frame.time_base = pts, self._time_base
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def close(self) -> None:
        """Write what is left, and the table that makes it playable."""
        if self._stream is not None:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()

    def _begun(self, height: int, width: int) -> Any:
        stream = self._container.add_stream(
            self._codec, rate=self._rate, options=_OPTIONS[self._codec]
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.time_base = stream.time_base = self._time_base
        return stream


def comment_of_video(path: Path) -> str:
    """The comment that `VideoWriter` wrote with a video; "" where there is no other."""
    try:
        with OpenVideo.of(Video(str(path))) as video:
            return str(video.container.metadata.get("comment", ""))
    except D2CityscapesError:  # no video, or nothing here to read one with
        return ""


def _open(av: Any, source: Video) -> Any:
    if source.live:
        return av.open(source.path, format=_CAMERAS)
    return av.open(source.path, options={"format_whitelist": _FORMATS})


class _Nothing:
    """Behind the last packet."""

    def decode(self) -> list[Any]:
        return []


_NOTHING = _Nothing()


def _packets(container: Any) -> Any:
    """Of the pictures, in order; the last one is empty and gives what the decoder still holds."""
    yield from container.demux(container.streams.video[0])


def _by_duration(container: Any, rate: Fraction) -> int:
    microseconds = container.duration or 0
    return max(round(microseconds * rate / 1_000_000), 0)


def _upright(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB as players show it: phones film upright by a note in the file."""
    pixels = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(pixels, quarters))


@contextlib.contextmanager
def _errors(source: Video) -> Iterator[None]:
    """One line of what keeps a video from being opened."""
    try:
        yield
    except FileNotFoundError as error:
        what = "no such camera" if source.live else "missing"
        raise PictureError(f"{source.path}: {what}{_cameras() if source.live else ''}") from error
    except (OSError, ValueError) as error:  # PyAV's errors are of these
        what = "cannot be used as a camera" if source.live else "not a readable video"
        raise PictureError(f"{source.path}: {what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return str(text)


def _cameras() -> str:
    found = sorted(str(path) for path in Path(os.sep, "dev").glob("video*"))
    return f"; there are {', '.join(found)}" if found else "; this machine has none"

"""Videos read and written: times, rotation, damage."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from d2_cityscapes.engine.prediction import PictureError
from d2_cityscapes.engine.prediction.videos import OpenVideo, Video, VideoWriter, comment_of_video

av = pytest.importorskip("av")
RNG = np.random.default_rng(0)
UNEVEN = [0, 40, 50, 200, 1000, 1033, 1066, 2000, 2001, 2002]  # ms


def read(path: Path) -> tuple[list[float], list[np.ndarray], list[str]]:
    """Times in seconds, pictures and problems."""
    with OpenVideo.of(Video(str(path))) as video:
        frames = list(video.frames())
        assert [frame.number for frame in frames] == list(range(len(frames)))
        times = [float(frame.pts * video.time_base) for frame in frames]
        return times, [frame.pixels for frame in frames], video.problems


def coded(path: Path, codec: str, number: int = 30, kind: str = "yuv420p") -> bytes:
    """Noise as a video of any kind; its bytes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 64, kind
        for _ in range(number):
            pixels = RNG.integers(0, 256, (32, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def test_each_picture_keeps_its_time(film: Callable, tmp_path: Path, scene: np.ndarray) -> None:
    times, pictures, problems = read(film(tmp_path / "a.mp4", UNEVEN, comment="mine"))
    assert times == [pytest.approx(ms / 1000, abs=1e-6) for ms in UNEVEN]
    assert not problems and comment_of_video(tmp_path / "a.mp4") == "mine"
    for number, own in enumerate(pictures):
        expected = np.roll(scene, -3 * number, axis=1).astype(int)
        assert np.abs(own - expected).mean() < 6  # H.264 has lost little


def test_odd_sizes_get_one_more_row_and_column(tmp_path: Path) -> None:
    with open(tmp_path / "a.mp4", "wb+") as file:
        writer = VideoWriter(file, rate=Fraction(25), time_base=Fraction(1, 25), comment="")
        writer.write(np.full((31, 57, 3), 90, np.uint8), 0)
        writer.close()
    (picture,) = read(tmp_path / "a.mp4")[1]
    assert picture.shape == (32, 58, 3) and np.abs(picture.astype(int) - 90).max() < 6


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_it_stands_as_players_show_it(film: Callable, tmp_path: Path, turns: int) -> None:
    """By the matrix of the track, which phones write: quarter turns clockwise."""
    path = film(tmp_path / "a.mp4", [0])
    (stored,) = read(path)[1]
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 4 + 5 * 4 + 2 * 8  # version 0; see ISO 14496-12, 8.3.2
    one = 1 << 16
    a, b = ((one, 0), (0, one), (-one, 0), (0, -one))[turns]
    content[start : start + 36] = struct.pack(">9i", a, b, 0, -b, a, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    (shown,) = read(path)[1]
    assert (shown == np.rot90(stored, -turns)).all()


@pytest.mark.parametrize(
    ("name", "codec", "kind"),
    [
        ("a.mkv", "libx264", "yuv420p"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.avi", "mpeg4", "yuv420p"),
    ],
)
def test_a_lost_end_is_said(tmp_path: Path, name: str, codec: str, kind: str) -> None:
    path = tmp_path / name
    content = coded(path, codec, kind=kind)
    assert len(read(path)[1]) == 30 and not read(path)[2]
    path.write_bytes(content[: len(content) * 2 // 3])
    _, pictures, (problem,) = read(path)
    assert 5 < len(pictures) < 30
    assert problem.startswith(f"{path}: ends after ") and "its end is lost" in problem


def test_a_damaged_part_is_named_and_the_rest_read(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    content = bytearray(coded(path, "mjpeg", kind="yuvj420p"))
    starts = [found.start() + 8 for found in re.finditer(b"00dc", content)]
    for number in (12, 13):
        start, end = starts[number], starts[number + 1] - 8
        content[start:end] = bytes(end - start)
    path.write_bytes(content)
    times, pictures, (problem,) = read(path)
    assert len(pictures) == 28 and times[-1] == pytest.approx(29 / 25)
    assert problem.startswith(f"{path}: 2 parts cannot be decoded, the first after 0.4")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable video"),
        (b"no video", "not a readable video"),
        (b"#EXTM3U\n#EXTINF:9,\nhttp://localhost/a.ts\n#EXT-X-ENDLIST\n", "not a readable video"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "not a readable video"),
        (b"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "not a readable video"),
    ],
)
def test_other_files_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    """Lists of other files and addresses among them: nothing that they name is opened."""
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert comment_of_video(path) == ""


def test_a_list_of_a_real_video_is_not_followed(film: Callable, tmp_path: Path) -> None:
    film(tmp_path / "other.mp4", [0])
    (tmp_path / "a.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/other.mp4\n")
    with pytest.raises(PictureError, match="not a readable video"):
        read(tmp_path / "a.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(PictureError, match="has no pictures, only sound"):
        read(tmp_path / "a.mp4")


def test_a_camera_that_is_not_there_is_one_line() -> None:
    with pytest.raises(PictureError, match=r"/dev/video97: no such camera; "):
        Video("/dev/video97", live=True).check()

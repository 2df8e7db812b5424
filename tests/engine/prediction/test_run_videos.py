"""Videos and cameras through the model: the same times, whole files or none, bounded memory."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.engine.prediction import (
    Options,
    PictureError,
    Predictor,
    inputs,
    predict,
    videos,
)
from d2_cityscapes.engine.prediction.marks import MARK
from d2_cityscapes.engine.prediction.videos import OpenVideo, Video, comment_of_video
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.png import write_picture

pytest.importorskip("av")
TIMES = [0, 40, 50, 200, 240, 280, 320, 1000, 1040, 1080]  # ms


def times_of(path: Path) -> list[float]:
    with OpenVideo.of(Video(str(path))) as video:
        found = [float(frame.pts * video.time_base) for frame in video.frames()]
        assert not video.problems
        return found


def test_a_video_becomes_one_of_drawings(cfg, film: Callable, tmp_path: Path) -> None:
    """And again; its own is not taken for an input."""
    source, out = film(tmp_path / "street.mp4", TIMES), tmp_path
    for _ in range(2):
        done = predict(cfg, [f"{tmp_path}/*.mp4"], out, Options(batch_size=4))
        assert done.images == 10 and not done.problems
    assert done.found.passed_over == {"drawn by this command": 1}
    drawn = out / "street_drawn.mp4"
    assert times_of(drawn) == pytest.approx(times_of(source), abs=1e-6)
    assert comment_of_video(drawn) == MARK
    with OpenVideo.of(Video(str(drawn))) as a, OpenVideo.of(Video(str(source))) as b:
        first, before = next(a.frames()).pixels, next(b.frames()).pixels
    assert first.shape == before.shape
    assert np.abs(first.astype(int) - before).mean() > 10  # it is drawn over
    assert not [p for p in out.iterdir() if p.suffix in (".tmp", ".jpg")]


def test_frames_as_files(panoptic_cfg, film: Callable, tmp_path: Path) -> None:
    source, out = film(tmp_path / "street.mp4", TIMES), tmp_path / "out"
    options = Options(formats=["ids", "coco", "panoptic"], frames=3)
    done = predict(panoptic_cfg, [source], out, options)
    assert done.images == 3
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "coco_images.json",
        "coco_instances_results.json",
        "panoptic.json",
        *(f"panoptic/street/{n:06d}_panoptic.png" for n in range(3)),
        *(f"street/{n:06d}_instanceIds.png" for n in range(3)),
    ]


def test_an_interrupted_video_leaves_nothing(
    cfg, film: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither half a file nor an earlier one replaced."""
    source, out = film(tmp_path / "street.mp4", TIMES), tmp_path / "out"
    predict(cfg, [source], out, Options(frames=2))
    before = (out / "street_drawn.mp4").read_bytes()
    _interrupt(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        predict(cfg, [source], out)
    assert [p.name for p in out.iterdir()] == ["street_drawn.mp4"]
    assert (out / "street_drawn.mp4").read_bytes() == before


def test_a_camera_ends_with_ctrl_c_and_its_video_is_whole(
    cfg, film: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands for the camera, whose times begin late."""
    device = film(tmp_path / "video0", [time + 500_000 for time in TIMES])
    monkeypatch.setattr(videos, "_CAMERAS", "mp4")
    monkeypatch.setattr(inputs, "_DEVICE", re.compile(re.escape(str(device))))
    _interrupt(monkeypatch, 5)
    done = predict(cfg, [str(device)], tmp_path / "out")
    assert done.images == 5
    found = times_of(tmp_path / "out" / "video0_drawn.mp4")
    assert found == pytest.approx([ms / 1000 for ms in TIMES[:5]], abs=1e-6)


def test_what_cannot_be_used_is_one_line(cfg, film: Callable, scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PictureError, match="/dev/video96: no such camera"):
        predict(cfg, ["camera:96"], out)
    with pytest.raises(PictureError, match=r"film\.mp4: missing"):
        predict(cfg, [tmp_path / "film.mp4"], out)
    source = film(tmp_path / "film.mp4", TIMES[:2])
    write_picture(tmp_path / "a.png", scene)
    with pytest.raises(PictureError, match="--format video is for videos and cameras"):
        predict(cfg, [source, tmp_path / "a.png"], out, Options(formats=["video"]))
    assert not out.exists()
    out.mkdir()
    shutil.copy(source, out / "film_drawn.mp4")
    with pytest.raises(PictureError, match=r"film_drawn\.mp4 is not of this command"):
        predict(cfg, [source], out)
    (out / "film_drawn.mp4").unlink()
    with pytest.raises(D2CityscapesError, match="is read here too"):
        film(tmp_path / "b_drawn.mp4", TIMES[:2], comment=MARK)
        film(tmp_path / "b.mp4", TIMES[:2])
        predict(cfg, [tmp_path / "b.mp4", tmp_path / "b_drawn.mp4"], tmp_path)


def test_a_damaged_video_does_not_stop_the_others(cfg, film: Callable, tmp_path: Path) -> None:
    film(tmp_path / "good.mp4", TIMES[:3])
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(PictureError) as caught:
        predict(cfg, [tmp_path / "bad.mp4", tmp_path / "good.mp4"], tmp_path / "out")
    assert str(caught.value) == (
        f"1 problem: {tmp_path}/bad.mp4: not a readable video (Invalid data found when processing "
        f"input); 3 pictures are in {tmp_path}/out"
    )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good_drawn.mp4"]


def test_a_full_disk_is_one_line(cfg, film: Callable, tmp_path: Path, disk_of) -> None:
    source = film(tmp_path / "street.mp4", TIMES)
    with disk_of(2000), pytest.raises(D2CityscapesError, match=r"street_drawn\.mp4: cannot be"):
        predict(cfg, [source], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(cfg, film: Callable, tmp_path: Path) -> None:
    """60 s of 25 pictures each, beside 4 s of them, every process with a peak of its own."""
    (tmp_path / "run").mkdir()
    shutil.copy(cfg.MODEL.WEIGHTS, tmp_path / "run" / "model_final.pth")
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    peaks = []
    for number in (100, 1500):
        source = film(tmp_path / f"{number}.mp4", range(0, 40 * number, 40))
        peaks.append(peak_of_predict(tmp_path / "run", source, tmp_path / "out"))
        assert len(times_of(tmp_path / "out" / f"{number}_drawn.mp4")) == number
    assert peaks[1] - peaks[0] < 30, peaks  # MiB


def peak_of_predict(model: Path, source: Path, output: Path, *options: str) -> float:
    """MiB of memory that a process of its own held at once."""
    code = """
import resource, sys
from d2_cityscapes.commands.predict import main
main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    arguments = ["--model", model, "--input", source, "--output", output, *options]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@pytest.mark.slow
def test_a_picture_of_8k_in_bounded_memory(instance_cfg, scene, tmp_path: Path) -> None:
    """A hundred objects of up to the whole picture: 3.3 GB of bitmaps, were they held."""
    instance_cfg.TEST.DETECTIONS_PER_IMAGE = 100
    instance_cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 100
    (tmp_path / "run").mkdir()
    shutil.copy(instance_cfg.MODEL.WEIGHTS, tmp_path / "run" / "model_final.pth")
    (tmp_path / "run" / "config.yaml").write_text(instance_cfg.dump())
    peaks = []
    for name, size in (("small", (128, 64)), ("large", (7680, 4320))):
        Image.fromarray(scene).resize(size).save(tmp_path / f"{name}.jpg")
        options = ("--format", "drawn", "ids", "coco", "--score-threshold", "0.0")
        out = tmp_path / "out" / name
        peaks.append(peak_of_predict(tmp_path / "run", tmp_path / f"{name}.jpg", out, *options))
    assert peaks[1] - peaks[0] < 1500, peaks  # MiB


def _interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C when a model has seen so many pictures."""
    predict_batch, seen = Predictor.batch, []

    def batch(self, images):
        if len(seen) == after:
            raise KeyboardInterrupt
        seen.append(images)
        return predict_batch(self, images)

    monkeypatch.setattr(Predictor, "batch", batch)

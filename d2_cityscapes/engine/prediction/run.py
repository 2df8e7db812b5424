"""Pictures of one's own become drawings, maps, videos and lists of what a model sees in them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from tqdm import tqdm

from d2_cityscapes.config import model_tasks
from d2_cityscapes.data.register import label_table_of
from d2_cityscapes.engine.prediction.coco_files import CocoIds, coco_writer, panoptic_writer
from d2_cityscapes.engine.prediction.inputs import ENDINGS, FoundInputs, find_pictures
from d2_cityscapes.engine.prediction.pictures import PictureError, read_picture
from d2_cityscapes.engine.prediction.places import check_places
from d2_cityscapes.engine.prediction.predictor import Predictor
from d2_cityscapes.engine.prediction.tiles import TiledPredictor, Tiling
from d2_cityscapes.engine.prediction.videos import OpenVideo, Video
from d2_cityscapes.engine.prediction.writers import FileWriter, Seen, Writer, video_writer
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.errors import D2CityscapesError

__all__ = ["FORMATS", "Options", "Summary", "predict", "predict_pictures"]

# What can be written -> the task that a model has to predict for it, if any.
FORMATS = {"drawn": "", "ids": "", "coco": "bbox", "panoptic": "panoptic_seg", "video": ""}
_ENDS_CAMERA = (KeyboardInterrupt,)
_OF_PICTURES, _OF_VIDEOS = ("drawn", "ids"), ("video",)  # where no format is asked for


@dataclass(frozen=True)
class Options:
    """How pictures are predicted, and what is written.

    Attributes:
        formats: keys of `FORMATS`; () for drawings and maps of pictures, and videos of videos.
        batch_size: pictures of one size that follow each other and are seen together.
        tiling: large pictures in parts at full resolution; None for whole pictures.
        frames: of each video or camera the first so many; 0 for all.
        score_threshold: least score of an instance that is drawn; None for 0.5, or for what the
            config says of panoptic models.
        coco_truth: a COCO JSON whose ids of images and categories "coco" takes.
    """

    formats: Sequence[str] = ()
    batch_size: int = 1
    tiling: Tiling | None = None
    frames: int = 0
    score_threshold: float | None = None
    coco_truth: Path | None = None


@dataclass
class Summary:
    """What was done.

    Attributes:
        found: the inputs.
        images: how many pictures and frames were predicted.
        problems: a line for each that could not be read.
        notes: what a user should know.
    """

    found: FoundInputs
    images: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Loaded(NamedTuple):
    name: str
    file_name: str
    image: np.ndarray
    pts: int = 0


def predict_pictures(
    cfg: CfgNode, inputs: Sequence[str | Path], output: Path, options: Options | None = None
) -> FoundInputs:
    """`predict`, for what was found. Pictures that could not be read are an error in the end."""
    return predict(cfg, inputs, output, options).found


def predict(
    cfg: CfgNode, inputs: Sequence[str | Path], output: Path, options: Options | None = None
) -> Summary:
    """Predict pictures, videos, cameras and shards, and write what is asked for.

    "drawn" is <output>/<name>_drawn.jpg, the picture under its prediction, "ids"
    <output>/<name>_instanceIds.png, the (H, W) 16-bit map of instance ids, panoptic, of instances
    (0 elsewhere) or semantic, as the model predicts. Both have the size of the picture as it is
    shown; of a video they are <name>/<number>_... for each frame. "video" is <name>_drawn.mp4,
    "coco" and "panoptic" are described at `coco_writer` and `panoptic_writer`. Damaged pictures do
    not keep the others from being predicted. A camera ends with Ctrl-C, and what was seen so far is
    written; anything else that is interrupted leaves whole files alone.

    Args:
        cfg: of the model, with its trained MODEL.WEIGHTS.
        inputs: see `find_pictures`.
        output: folder, made if need be. What an earlier call wrote there is written anew.
        options: see there.

    Raises:
        D2CityscapesError: inputs, weights, config or options that cannot be used; an output that
            cannot be written, is one of the inputs, or would replace a file of other origin; in the
            end, pictures that could not be read.
    """
    options = options or Options()
    found = find_pictures(inputs)
    if len(found) == 0:
        raise PictureError(
            f"{', '.join(map(str, inputs))}: no {', '.join(ENDINGS)} file{found.passed_over_text()}"
        )
    for video in found.videos.values():
        video.check()
    of_pictures, of_videos = _formats(cfg, found, options)
    check_places(output, found, of_pictures, of_videos)
    ids = CocoIds(label_table_of(cfg.DATASETS.TEST), options.coco_truth)
    ids.check([*found.pictures, *found.records])
    cfg = _with_threshold(cfg, options.score_threshold)
    tiled = options.tiling
    predictor = (
        Predictor(cfg, lean=True) if tiled is None else TiledPredictor(cfg, tiled, lean=True)
    )
    run = _Run(cfg, predictor, output, options, Summary(found))
    with contextlib.ExitStack() as stack:
        shared: dict[str, Callable[[], contextlib.AbstractContextManager[Writer]]] = {
            "drawn": lambda: contextlib.nullcontext(FileWriter(output, "drawn")),
            "ids": lambda: contextlib.nullcontext(FileWriter(output, "ids")),
            "coco": partial(coco_writer, output, predictor.table, ids),
            "panoptic": partial(
                panoptic_writer, output, predictor.table, [*found.pictures, *found.records]
            ),
        }
        writers = {
            name: stack.enter_context(opened())
            for name, opened in shared.items()
            if name in of_pictures or name in of_videos
        }
        run.pictures([writers[name] for name in of_pictures if name in writers])
        for name, video in found.videos.items():
            run.video(name, video, {k: writers.get(k) for k in of_videos})
    return run.finish(ids)


class _Run:
    """The pictures of a call, on their way through the model."""

    def __init__(
        self,
        cfg: CfgNode,
        predictor: Predictor,
        output: Path,
        options: Options,
        summary: Summary,
    ) -> None:
        self._cfg, self._predictor, self._output = cfg, predictor, output
        self._options, self._summary = options, summary
        threshold = options.score_threshold
        self._threshold = 0.5 if threshold is None else threshold
        self._any_instance = False

    def pictures(self, writers: Sequence[Writer]) -> None:
        """All files and records."""
        found = self._summary.found
        total = len(found.pictures) + len(found.records)
        if total:
            with tqdm(total=total, desc="predicting", unit="image") as bar:
                self._through(self._read(bar), writers)

    def video(self, name: str, video: Video, writers: dict[str, Writer | None]) -> None:
        """A file, or a camera until it is interrupted."""
        try:
            with contextlib.ExitStack() as stack:
                opened = stack.enter_context(OpenVideo.of(video))
                own = {k: w for k, w in writers.items() if w is not None}
                if "video" in writers:
                    drawn = video_writer(self._output, name, opened)
                    own["video"] = stack.enter_context(drawn)
                before = self._summary.images
                with contextlib.suppress(*_ENDS_CAMERA if video.live else ()):
                    self._through(self._frames(name, opened), list(own.values()))
                if self._summary.images == before:  # no picture, no video
                    raise PictureError(
                        "; ".join(opened.problems) or f"{video.path}: gave no picture"
                    )
                self._summary.problems += opened.problems
        except PictureError as error:
            self._summary.problems.append(str(error))

    def finish(self, ids: CocoIds) -> Summary:
        """
        Raises:
            PictureError: some could not be read.
        """
        summary = self._summary
        done = f"{summary.images} pictures are in {self._output}"
        if ids.left_out:
            summary.notes.append(
                f"{ids.left_out} detections of classes that {ids.truth} does not have are left out"
            )
        if summary.images and not self._any_instance and "bbox" in model_tasks(self._cfg):
            summary.notes.append(self._nothing_found())
        if summary.problems:
            if summary.found.pictures and not summary.found.videos:
                total = len(summary.found.pictures) + len(summary.found.records)
                done = f"{summary.images} of {total} pictures are in {self._output}"
            notes = "".join(f"; {note}" for note in summary.notes)
            raise PictureError.of_many(
                summary.problems, f"{done}{summary.found.passed_over_text()}{notes}"
            )
        return summary

    def _read(self, bar: tqdm) -> Iterator[_Loaded]:
        found = self._summary.found
        sources: Iterable[tuple[str, str, Callable[[], np.ndarray]]] = (
            *((n, f"{n}{p.suffix}", partial(read_picture, p)) for n, p in found.pictures.items()),
            *((n, n, record.read) for n, record in found.records.items()),
        )
        for name, file_name, read in sources:
            try:
                loaded = _Loaded(name, file_name, read())
            except D2CityscapesError as error:
                self._summary.problems.append(str(error))
            else:
                yield loaded
            bar.update()

    def _frames(self, name: str, video: OpenVideo) -> Iterator[_Loaded]:
        most = self._options.frames
        total = min(filter(None, (most, video.length)), default=None)
        label = PurePath(name).name
        with tqdm(total=total, desc=f"predicting {label}", unit="image") as bar:
            for frame in video.frames():
                own = f"{name}/{frame.number:06d}"
                yield _Loaded(own, own, frame.pixels, frame.pts)
                bar.update()
                if most and frame.number + 1 >= most:
                    return

    def _through(self, loaded: Iterator[_Loaded], writers: Sequence[Writer]) -> None:
        for batch in _batches(loaded, self._options.batch_size):
            outputs = self._predictor.batch([own.image for own in batch])
            for own, output in zip(batch, outputs, strict=True):
                self._write(own, output, writers)
            del outputs

    def _write(self, own: _Loaded, output: dict[str, Any], writers: Sequence[Writer]) -> None:
        seen = Seen(
            own.name, own.file_name, own.image, output, self._predictor.table, self._threshold,
            own.pts,
        )  # fmt: skip
        for writer in writers:
            writer.write(seen)
        self._any_instance = self._any_instance or seen.has_instances
        self._summary.images += 1

    def _nothing_found(self) -> str:
        best = self._predictor.best_score
        seen = "no box was looked at" if best is None else f"the best score seen is {best:.3f}"
        model = self._cfg.MODEL
        drawn, kept = self._threshold, ""
        if model.META_ARCHITECTURE == "UniversalSegmentor":
            drawn = model.UNIVERSAL.OBJECT_THRESHOLD
        else:
            least = model.ROI_HEADS.SCORE_THRESH_TEST
            kept = f", and kept from {least:g} on (MODEL.ROI_HEADS.SCORE_THRESH_TEST)"
            if "panoptic_seg" in model_tasks(self._cfg):
                drawn = model.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH
        return (
            f"nothing found in {self._summary.images} pictures: {seen}; objects are drawn from "
            f"{drawn:g} on (--score-threshold){kept}"
        )


def _batches(loaded: Iterator[_Loaded], size: int) -> Iterator[list[_Loaded]]:
    """Up to so many that follow each other and have one size."""
    batch: list[_Loaded] = []
    for own in loaded:
        if batch and (len(batch) == size or batch[0].image.shape != own.image.shape):
            yield batch
            batch = []
        batch.append(own)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _formats(
    cfg: CfgNode, found: FoundInputs, options: Options
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is written of pictures, and of videos."""
    asked = tuple(dict.fromkeys(options.formats))
    for name in asked:
        if FORMATS[name] and FORMATS[name] not in model_tasks(cfg):
            what = "panoptics" if name == "panoptic" else "instances"
            raise ConfigError(
                f"--format {name}: {cfg.MODEL.META_ARCHITECTURE} of this config predicts no {what}"
            )
    of_pictures = tuple(name for name in asked or _OF_PICTURES if name != "video")
    if (found.pictures or found.records) and not of_pictures:
        raise PictureError("--format video is for videos and cameras; pictures have no times")
    if options.coco_truth and ("coco" not in asked or found.videos):
        raise PictureError("--coco-truth goes with --format coco, of pictures")
    return of_pictures, asked or _OF_VIDEOS


def _with_threshold(cfg: CfgNode, score_threshold: float | None) -> CfgNode:
    """The config with the least score of what is drawn, and no larger one of what is kept."""
    if score_threshold is None:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    heads = cfg.MODEL.ROI_HEADS
    heads.SCORE_THRESH_TEST = min(heads.SCORE_THRESH_TEST, score_threshold)
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = score_threshold
    cfg.MODEL.UNIVERSAL.OBJECT_THRESHOLD = score_threshold
    cfg.freeze()
    return cfg

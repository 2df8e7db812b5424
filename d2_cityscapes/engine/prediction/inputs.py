"""What there is to predict: pictures, folders, globs, videos, cameras and shards, by name.

Decided one by one: what a folder holds is predicted, or passed over and counted.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_cityscapes.data.shard_folders import register_shard_folders
from d2_cityscapes.engine.prediction.marks import DRAWN_SUFFIX, is_drawn
from d2_cityscapes.engine.prediction.pictures import PictureError
from d2_cityscapes.engine.prediction.videos import VIDEO_ENDINGS, Video
from d2_cityscapes.errors import nearest
from d2_cityscapes.files import expanded, is_plain_name
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.shards.file import ShardError
from d2_cityscapes.shards.reader import INDEX_NAME, ShardReader, folder_table, open_shard
from d2_cityscapes.sources.names import IDS_SUFFIX, PICTURES, image_name

__all__ = ["ENDINGS", "FoundInputs", "ShardImage", "find_pictures"]

ENDINGS = (
    *PICTURES,
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
)  # of pictures in a folder; in upper case too

_WILD = re.compile(r"[*?\[]")
_CAMERA = re.compile(r"camera:(\d+)")
_DEVICE = re.compile(r"/dev/video\d+")


@dataclass(frozen=True)
class ShardImage:
    """The picture of a record in a shard."""

    shard: Path
    index: int
    table: LabelTable

    def read(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return open_shard(str(self.shard), self.table).image(self.index).permute(1, 2, 0).numpy()


@dataclass
class FoundInputs:
    """What there is to predict, by the name that its results get.

    Attributes:
        pictures: name -> path; the name is the path below the input, without ending.
        records: image id -> where it lies in a shard.
        videos: name -> file or camera.
        passed_over: why -> how many files of the folders.
    """

    pictures: dict[str, Path] = field(default_factory=dict)
    records: dict[str, ShardImage] = field(default_factory=dict)
    videos: dict[str, Video] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.pictures) + len(self.records) + len(self.videos)

    def files(self) -> set[Path]:
        """All that is read."""
        shards = {record.shard for record in self.records.values()}
        return {*self.pictures.values(), *shards, *(Path(v.path) for v in self.videos.values())}

    def passed_over_text(self) -> str:
        """ "; passed over: 2 of other kinds", or "" where nothing was."""
        counts = ", ".join(f"{number} {why}" for why, number in self.passed_over.items())
        return f"; passed over: {counts}" if counts else ""


def find_pictures(inputs: Sequence[str | Path]) -> FoundInputs:
    """Look up what a command was told to predict.

    An input is a file (a video by its ending, else a picture, whatever it is called), a folder, the
    name of a registered dataset of shards, a shard or a folder of them, "camera:N" or /dev/videoN,
    or a pattern with ``*``, ``?``, ``[...]`` and ``**``.

    Of folders, and of what a pattern matches, are passed over: files of other kinds, those with a
    dot in front (or in a folder that has), and what an earlier run of the command wrote, that is
    <name>_drawn.jpg and <name>_instanceIds.png with its mark, or side by side. Videos are predicted
    where they are named or matched, not where they lie in a folder.

    Raises:
        PictureError: a missing input, a pattern that matches nothing, a dataset that is not of
            shards, or two pictures of one name.
        ShardError: shards that cannot be read.
    """
    found = FoundInputs()
    for source in inputs:
        _look_up(found, str(source))
    return found


def _look_up(found: FoundInputs, source: str) -> None:
    path = Path(expanded(source))
    camera = _CAMERA.fullmatch(source)
    if camera or _DEVICE.fullmatch(source):
        device = f"/dev/video{camera[1]}" if camera else source
        _add(found.videos, Path(device).name, Video(device, live=True))
    elif path.is_dir():
        _add_folder(found, path)
    elif path.exists():
        _add_file(found, path)
    elif _WILD.search(source):
        _add_matches(found, str(path))
    else:
        _add_dataset(found, source)


def _add_file(found: FoundInputs, path: Path) -> None:
    name = path.with_suffix("").name
    if path.suffix.lower() in VIDEO_ENDINGS:
        _add(found.videos, name, Video(str(path)))
    elif path.suffix.lower() == ".safetensors":
        _add_shards(found, path)
    else:
        _add(found.pictures, name, path)


def _add_folder(found: FoundInputs, folder: Path) -> None:
    if (folder / INDEX_NAME).is_file() and any(folder.glob("*.safetensors")):
        _add_shards(found, folder)
        return
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        why = _passed_over(path, path.relative_to(folder))
        if why:
            found.passed_over[why] += 1
        else:
            name = path.relative_to(folder).with_suffix("").as_posix()
            _add(found.pictures, name, path)


def _add_matches(found: FoundInputs, pattern: str) -> None:
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if _WILD.search(part))
    above = Path(*parts[:fixed])
    matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in matches if path.is_file()]
    if not files:
        raise PictureError(f"{pattern}: matches no file")
    for path in files:
        below = path.relative_to(above)
        if path.suffix.lower() in VIDEO_ENDINGS and not is_drawn(path):
            _add(found.videos, below.with_suffix("").as_posix(), Video(str(path)))
        elif why := _passed_over(path, below):
            found.passed_over[why] += 1
        else:
            _add(found.pictures, below.with_suffix("").as_posix(), path)


def _add_dataset(found: FoundInputs, name: str) -> None:
    register_shard_folders()  # those that were packed since the start, too
    if name not in DatasetCatalog.list():
        hint = nearest(name, DatasetCatalog.list(), cutoff=0.8) if os.sep not in name else ""
        raise PictureError(f"{name}: missing{hint}")
    table = MetadataCatalog.get(name).get("label_table")
    dicts = [] if table is None else DatasetCatalog.get(name)
    if not dicts or not all("shard" in d for d in dicts):
        raise PictureError(f"{name}: a dataset that is not of shards; name its pictures")
    _add_rows(found, ((d["image_id"], Path(d["shard"]), d["index"]) for d in dicts), table)


def _add_shards(found: FoundInputs, path: Path) -> None:
    table = folder_table(path if path.is_dir() else path.parent)
    reader = ShardReader(path, table=table)
    names = enumerate(reader.file_names)
    _add_rows(found, ((image_name(name), *reader.source(i)) for i, name in names), table)


def _add_rows(found: FoundInputs, rows: Iterable[tuple[str, Path, int]], table: LabelTable) -> None:
    for name, shard, index in rows:
        if not is_plain_name(name):
            raise ShardError(f"{shard}: {name!r} is not the name of a file; nothing is written")
        _add(found.records, name, ShardImage(Path(shard), index, table))


def _passed_over(path: Path, below: Path) -> str:
    """Why a file of a folder is no picture to predict; "" where it is one."""
    if any(part.startswith(".") for part in below.parts):
        return "with a dot in front"
    if path.suffix.lower() in VIDEO_ENDINGS and path.is_file():
        return "drawn by this command" if is_drawn(path) else "videos (name them to predict them)"
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        return "of other kinds"
    for own, other in ((DRAWN_SUFFIX, IDS_SUFFIX), (IDS_SUFFIX, DRAWN_SUFFIX)):
        if path.name.endswith(own):
            twin = path.with_name(f"{path.name.removesuffix(own)}{other}")
            if twin.is_file() or is_drawn(path):
                return "drawn by this command"
    return ""


def _add(known: dict, name: str, source: Path | ShardImage | Video) -> None:
    other = known.setdefault(name, source)
    if other is source or other == source:
        return
    if isinstance(source, Path) and isinstance(other, Path) and other.samefile(source):
        return
    raise PictureError(f"{_where(source)} and {_where(other)}: both would be written as {name}")


def _where(source: Path | ShardImage | Video) -> str:
    return str(getattr(source, "shard", getattr(source, "path", source)))

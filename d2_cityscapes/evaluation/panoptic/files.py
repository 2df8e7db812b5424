"""Panoptic annotations and predictions on disk, in whatever form they come.

The form is recognised by what is there: PNGs of instance ids, COCO panoptic, or shards.
"""

from __future__ import annotations

import glob
import itertools
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from d2_cityscapes.evaluation.panoptic.map_files import (
    IdMapFile,
    IdsPng,
    PanopticFileError,
    ShardRow,
)
from d2_cityscapes.files import check_outputs
from d2_cityscapes.labels import CITYSCAPES, LabelClass, LabelTable
from d2_cityscapes.sources.coco_panoptic import read_coco_panoptic
from d2_cityscapes.sources.names import IDS_SUFFIX, SPLITS, image_name

__all__ = ["PanopticFiles", "find_panoptic_files"]

_LEVEL3_SUFFIX = "level3Ids.png"  # written by the tools of the Indian Driving Dataset
_INDEX = "index.json"  # of shards
_SPLITS = (*SPLITS, "test")
_EXPECTED = (
    f"PNGs of instance ids (*{IDS_SUFFIX} or other *.png, flat or in folders), COCO panoptic "
    "(NAME.json beside a folder NAME), or shards (index.json)"
)
_Splits = dict[str, list[tuple[str, IdMapFile]]]  # split, or "" for none -> file name, map


@dataclass(frozen=True)
class PanopticFiles:
    """The maps of a set of images.

    Attributes:
        path: where they were found.
        maps: image name -> its map, in the order of the names.
        categories: category id -> class in COCO panoptic, else None.
    """

    path: Path
    maps: dict[str, IdMapFile]
    categories: Mapping[int, LabelClass] | None = None

    def check_output(self, output: Path) -> None:
        """Refuse an output that is read from here, or would be by the next who looks here.

        Raises:
            D2CityscapesError: it is one of the files, cannot be written, or has the name of one.
        """
        read = {id_map.path for id_map in self.maps.values()}
        folder = self.path if self.path.is_dir() else self.path.with_suffix("")
        check_outputs([output], [self.path, folder / _INDEX, *read])
        place = output.resolve()
        below = place.is_relative_to(folder.resolve()) or place.parent == self.path.parent.resolve()
        if below and (place.suffix.lower() == ".png" or place.name == _INDEX):
            raise PanopticFileError(
                f"{output}: would be read as a part of {self.path} next time; give the output "
                "another name, such as results.json"
            )


def find_panoptic_files(
    path: str | Path,
    *,
    truth: bool,
    split: str | None = None,
    categories: Mapping[int, LabelClass] | None = None,
    table: LabelTable = CITYSCAPES,
) -> PanopticFiles:
    """Find the maps at a place.

    Args:
        path: a folder, or a COCO panoptic JSON.
        truth: whether group regions count as such in COCO panoptic.
        split: the one to take where the place holds several.
        categories: of a COCO panoptic JSON without any; None for label ids.
        table: the classes.

    Raises:
        PanopticFileError: nothing or more than one form is there, or two maps of one image.
    """
    path = Path(os.path.abspath(path))
    if not path.exists():
        raise PanopticFileError(f"{path}: no such file or folder; expected {_EXPECTED}")
    if path.is_file() and path.suffix != ".json":
        raise PanopticFileError(f"{path}: a file; give its folder, or a COCO panoptic JSON")
    names = glob.glob("**/*.[pP][nN][gG]", root_dir=path, recursive=True)  # none with a dot first
    pngs = [path / name for name in sorted(names)]
    id_pngs = _ending(pngs, IDS_SUFFIX)
    jsons = _find_jsons(path)
    index = path / _INDEX
    level3 = _ending(pngs, _LEVEL3_SUFFIX)
    forms = [f"COCO panoptic {json_path}" for json_path in jsons]
    forms += [f"shards {index}"] * index.is_file()
    forms += [f"{len(id_pngs)} *{IDS_SUFFIX}"] * bool(id_pngs)
    if len(forms) > 1:
        raise PanopticFileError(f"{path}: found {', '.join(forms)}; give the one that you mean")

    found = None
    if jsons:
        path = jsons[0]
        listed, found = read_coco_panoptic(path, groups=truth, categories=categories, table=table)
        splits: _Splits = {"": list(listed.items())}
    elif index.is_file():
        splits = _shard_splits(path, table)
    elif level3:
        raise PanopticFileError(
            f"{level3[0]}: holds level3Ids, which are not label ids; give the COCO panoptic files "
            "that the dataset's createLabels.py writes, or shards"
        )
    elif pngs:
        splits = _png_splits(path, id_pngs or pngs)
    else:
        raise PanopticFileError(f"{path}: nothing to read here; expected {_EXPECTED}")
    if split is not None and split not in splits:
        held = ", ".join(filter(None, splits)) or "no folders of splits"
        raise PanopticFileError(f"{path}: no split {split}; it has {held}")
    if split is None and truth and len(splits) > 1:
        raise PanopticFileError(f"{path}: has splits {', '.join(splits)}; choose with --split")
    maps = _by_image(itertools.chain(*(splits.values() if split is None else [splits[split]])))
    if not maps:
        raise PanopticFileError(f"{path}: lists no image")
    return PanopticFiles(path, maps, found)


def _ending(paths: Iterable[Path], suffix: str) -> list[Path]:
    """Those whose names end so, in upper case too."""
    return [path for path in paths if path.name.lower().endswith(suffix.lower())]


def _find_jsons(path: Path) -> list[Path]:
    """The JSONs that make a folder COCO panoptic: beside it, or in it beside their own folder or
    their PNGs."""
    if path.is_file():
        return [path]
    beside = path.with_name(f"{path.name}.json")
    pngs = any(path.glob("*.png"))
    inside = (p for p in sorted(path.glob("*.json")) if pngs or p.with_suffix("").is_dir())
    candidates = [beside, *inside]
    # others may be there, as the results of a folder of predictions in a JSON beside it
    return [p for p in candidates if p.is_file() and _lists_segments(p)]


def _lists_segments(path: Path) -> bool:
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return content.find(b'"segments_info"') >= 0
    except ValueError:  # empty
        return False
    except OSError as error:
        raise PanopticFileError(f"{path}: cannot be read ({error.strerror})") from error


def _shard_splits(folder: Path, table: LabelTable) -> _Splits:
    from d2_cityscapes.shards.reader import read_index  # imports torch, which PNGs do not need

    splits: _Splits = {}
    for shard in read_index(folder)["shards"]:
        rows = splits.setdefault(shard["split"], [])
        path = folder / shard["file"]
        rows += [(n, ShardRow(path, i, table)) for i, n in enumerate(shard["images"])]
    return splits


def _png_splits(folder: Path, paths: Iterable[Path]) -> _Splits:
    splits: _Splits = {}
    for path in paths:
        above = path.relative_to(folder).parts[:-1]
        split = next((part for part in above if part in _SPLITS), "")
        splits.setdefault(split, []).append((path.name, IdsPng(path)))
    return splits


def _by_image(named: Iterable[tuple[str, IdMapFile]]) -> dict[str, IdMapFile]:
    maps: dict[str, IdMapFile] = {}
    for name, id_map in named:
        image = image_name(name)
        if image in maps:
            raise PanopticFileError(
                f"two maps of image {image}: {maps[image].where} and {id_map.where}"
            )
        maps[image] = id_map
    return dict(sorted(maps.items()))

"""Where results are written, and what may not be written over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from d2_cityscapes.engine.prediction.coco_files import IMAGES, PANOPTIC, RESULTS, is_own_json
from d2_cityscapes.engine.prediction.inputs import FoundInputs
from d2_cityscapes.engine.prediction.marks import VIDEO_SUFFIX, is_drawn
from d2_cityscapes.engine.prediction.pictures import PictureError
from d2_cityscapes.engine.prediction.writers import FileWriter
from d2_cityscapes.files import check_folder, check_not_read

__all__ = ["check_places"]


def check_places(
    output: Path, found: FoundInputs, of_pictures: Sequence[str], of_videos: Sequence[str]
) -> None:
    """Refuse an output that cannot be written, is read, or would replace what is not ours.

    Args:
        output: the folder.
        found: the inputs.
        of_pictures, of_videos: formats that are written of them.

    Raises:
        D2CityscapesError: see above.
    """
    check_folder(output)
    places = [*_places(output, found, of_pictures, of_videos)]
    check_not_read(places, found.files())
    foreign = [path for path in places if path.exists() and not is_drawn(path)]
    if "coco" in {*of_pictures, *of_videos} and not is_own_json(output / IMAGES):
        foreign += [path for path in (output / IMAGES, output / RESULTS) if path.exists()]
    if "panoptic" in {*of_pictures, *of_videos}:
        path = output / f"{PANOPTIC}.json"
        foreign += [path] * (path.exists() and not is_own_json(path))
    if foreign:
        raise PictureError.of_many(
            [f"{path} is not of this command" for path in foreign],
            "move it away, or name another folder to write to",
        )


def _places(
    output: Path, found: FoundInputs, of_pictures: Sequence[str], of_videos: Sequence[str]
) -> Iterator[Path]:
    """Files that are written: of pictures all, of videos what is there where they will be."""
    for name in itertools.chain(found.pictures, found.records):
        yield from (output / f"{name}{end}" for end in _suffixes(of_pictures))
        if "panoptic" in of_pictures:
            yield output / PANOPTIC / f"{name}_panoptic.png"
    for name in found.videos:
        if "video" in of_videos:
            yield output / f"{name}{VIDEO_SUFFIX}"
        for end in _suffixes(of_videos):
            yield from sorted((output / name).glob(f"*{end}"))
        if "panoptic" in of_videos:
            yield from sorted((output / PANOPTIC / name).glob("*_panoptic.png"))


def _suffixes(formats: Sequence[str]) -> list[str]:
    return [FileWriter.SUFFIXES[name] for name in formats if name in FileWriter.SUFFIXES]

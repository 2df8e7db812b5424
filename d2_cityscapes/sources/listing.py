"""What lies in the folders of a dataset: the files that are meant, and what came with them.

Names that begin with a dot are no images: macOS and archives leave ``._x.png`` beside x.png, and
editors and file managers keep folders of their own. They are passed over, with one line in the log
that counts them. Endings count in upper case too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from d2_cityscapes.errors import first_few
from d2_cityscapes.sources.errors import SourceError

__all__ = ["by_name", "list_files", "missing_file", "other_pictures"]

logger = logging.getLogger(__name__)

_Name = TypeVar("_Name")

# Endings of pictures that are told apart from what is no picture at all.
_PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def list_files(folder: Path, pattern: str, end: str, endings: Sequence[str]) -> list[Path]:
    """The files of a folder that are named as a dataset names them.

    Args:
        folder: where to look; it need not exist.
        pattern: of the places below it, e.g. "*/*".
        end: how names end, in front of the ending, e.g. "_leftImg8bit".
        endings: with a dot, in lower case.
    """
    found: list[Path] = []
    hidden: list[Path] = []
    for path in folder.glob(pattern):
        if path.suffix.lower() not in endings or not path.stem.endswith(end):
            continue
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        (hidden if is_hidden else found).append(path)
    if hidden:
        count = f"{len(hidden)} file{'s' if len(hidden) > 1 else ''}"
        names = first_few(sorted(str(path.relative_to(folder)) for path in hidden), 2)
        logger.warning("%s: passed over %s with a dot in front (%s)", folder, count, names)
    return found


def by_name(paths: Iterable[Path], name: Callable[[Path], _Name]) -> dict[_Name, Path]:
    """Name -> file.

    Raises:
        SourceError: two files of one name, as an image in two formats.
    """
    found: dict[_Name, Path] = {}
    for path in sorted(paths):
        other = found.setdefault(name(path), path)
        if other != path:
            raise SourceError(f"{path}: the same image as {other.name}; remove one of the two")
    return found


def other_pictures(folder: Path, pattern: str, end: str, endings: Sequence[str]) -> list[Path]:
    """Pictures that are named as `list_files` looks for them, but of kinds that are not read."""
    others = [ending for ending in _PICTURES if ending not in endings]
    return sorted(list_files(folder, pattern, end, others))


def missing_file(path: Path) -> str:
    """The end of an error about a file that is not there: a picture of another kind that is."""
    others = (path.with_suffix(e) for ending in _PICTURES for e in (ending, ending.upper()))
    found = next((other for other in others if other != path and other.is_file()), None)
    if found is None:
        return ""
    return f", but {found.name} is there; convert it to {path.suffix[1:].upper()}"

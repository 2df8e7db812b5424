"""What is wrong with other people's files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import file_errors

__all__ = ["SourceError", "document_errors", "load_document"]

_MOST_BYTES = 1 << 30  # of a JSON; the largest known, of COCO's train, has less than half of it


class SourceError(D2CityscapesError):
    """A dataset, or a file of one, that is missing, incomplete, damaged or of another kind."""


@contextlib.contextmanager
def document_errors(path: str | Path, kind: str) -> Iterator[None]:
    """Turn what goes wrong with a JSON file inside the block into one line with its path.

    Args:
        path: the file, and perhaps the part of it that is read.
        kind: what it should be, e.g. "a file of polygons".

    Raises:
        SourceError: unreadable, of another form, or one that the block has raised without the path.
    """
    with file_errors(path, SourceError):
        try:
            yield
        except D2CityscapesError as error:
            raise SourceError(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SourceError(f"{path}: not {kind} ({error!r})") from error


def load_document(path: Path) -> Any:
    """What a JSON file holds; inside of `document_errors`, which names the file.

    Raises:
        SourceError: larger than any such file.
        ValueError, RecursionError, OSError: unreadable.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise SourceError(f"larger than {_MOST_BYTES >> 20} MiB; split it")
    return json.loads(path.read_bytes())

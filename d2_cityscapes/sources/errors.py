"""What is wrong with other people's files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import file_errors

__all__ = ["SourceError", "document_errors"]


class SourceError(D2CityscapesError):
    """A dataset, or a file of one, that is missing, incomplete, damaged or of another kind."""


@contextlib.contextmanager
def document_errors(path: Path, kind: str) -> Iterator[None]:
    """Turn what goes wrong with a JSON file inside the block into one line with its path.

    Args:
        path: the file.
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

"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["write_atomically"]


def write_atomically(path: str | Path, chunks: Iterable[bytes]) -> None:
    """Write a file so that no reader, crash or full disk ever leaves half of it.

    Args:
        path: the file; its folder is created if need be.
        chunks: the content in pieces.

    Raises:
        D2CityscapesError: the disk refused; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise D2CityscapesError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

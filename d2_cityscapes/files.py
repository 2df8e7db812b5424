"""Files that are whole or not there, their checksums, and folders with one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from io import BufferedRandom
from pathlib import Path
from typing import Any

from d2_cityscapes.errors import D2CityscapesError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "file_sha256",
    "lock_folder",
    "open_atomically",
    "remove_temporaries",
    "write_atomically",
    "write_json",
]

_LOCK_PATIENCE = 2.0  # seconds


@contextlib.contextmanager
def open_atomically(path: str | Path) -> Iterator[BufferedRandom]:
    """A new file to write and read back, which takes the place of ``path`` when the block ends.

    No reader, crash or full disk ever leaves half of it: if the block fails, ``path`` is as it was.

    Args:
        path: the file; its folder is created if need be.

    Raises:
        D2CityscapesError: the disk refused; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise D2CityscapesError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, chunks: Iterable[bytes]) -> None:
    """Write a file from its content in pieces, whole or not at all; see `open_atomically`."""
    with open_atomically(path) as file:
        for chunk in chunks:
            file.write(chunk)


def write_json(path: str | Path, content: Any) -> None:
    """Write plain values as JSON to be read by people too, whole or not at all.

    Raises:
        ValueError: infinity or nan, which JSON does not have.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, [text.encode(), b"\n"])


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_temporaries(folder: Path, patterns: Iterable[str]) -> None:
    """Delete what killed writers of files with these names left behind.

    Nothing else may be writing there: hold `lock_folder`.
    """
    for pattern in patterns:
        for path in folder.glob(f".{pattern}.*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Keep other writers out of a folder while the block runs.

    The folder is created if need be, and removed again if it is still empty in the end. The lock
    goes with the process, however it ends. It is waited for two seconds, which is more than the
    workers of a killed process need to notice and let go.

    Yields:
        Whether the folder is locked: some network file systems cannot.

    Raises:
        D2CityscapesError: another process holds the lock, or the folder cannot be made.
    """
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise D2CityscapesError(f"{folder}: cannot be made ({error.strerror})") from error
    try:
        yield _lock(folder, descriptor)
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for created in new:
                created.rmdir()


def _lock(folder: Path, descriptor: int) -> bool:
    if fcntl is None:
        return False
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return False
        if time.monotonic() > deadline:
            raise D2CityscapesError(
                f"{folder}: another process is writing here; wait for it or name another folder"
            )
        time.sleep(0.05)

"""Files that are whole or not there, their checksums, and folders with one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO

from d2_cityscapes.errors import D2CityscapesError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "check_beside",
    "check_file",
    "check_folder",
    "check_not_read",
    "check_outputs",
    "expanded",
    "file_below",
    "file_errors",
    "file_sha256",
    "is_plain_name",
    "lock_folder",
    "open_atomically",
    "remove_temporaries",
    "stream_sha256",
    "write_atomically",
    "write_json",
]

_LOCK_PATIENCE = 2.0  # seconds
_READ_AT_ONCE = 1 << 20  # bytes
_LONGEST_NAME = 255  # bytes, of most file systems
_LEAVES_FOLDER = re.compile(r"[/\\]|^[A-Za-z]:")


def expanded(path: str) -> str:
    """A path with ~ and $VARIABLES replaced, as a shell would; an address with :// as it is."""
    return path if "://" in path else os.path.expandvars(os.path.expanduser(path))


def check_folder(folder: str | Path) -> None:
    """Refuse a folder that cannot be written to, before hours are spent; leaves nothing behind.

    Raises:
        D2CityscapesError: the folder cannot be made, a file is in its place, or it is read-only.
    """
    try:
        with _made(Path(folder)), tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise D2CityscapesError(
            f"{folder}: cannot be written to ({reason}); name another folder"
        ) from error


def check_file(path: str | Path) -> None:
    """Refuse a file that `write_atomically` could not write; leaves nothing behind.

    Raises:
        D2CityscapesError: its folder cannot be written to, or a folder is in its place.
    """
    check_folder(Path(path).parent)
    if Path(path).is_dir():
        raise D2CityscapesError(f"{path}: is a folder; name a file to write")


def check_outputs(outputs: Sequence[str | Path], inputs: Iterable[str | Path] = ()) -> None:
    """Refuse files that a command is to write, before it begins; leaves nothing behind.

    Files are told apart as the disk does, links and upper case considered.

    Args:
        outputs: what it writes.
        inputs: what it reads, see `check_not_read`.

    Raises:
        D2CityscapesError: one that cannot be written, that is written twice, or that is read.
    """
    for output in outputs:
        check_file(output)
    for one, other in itertools.combinations(map(Path, outputs), 2):
        alike = str(one.resolve()).casefold() == str(other.resolve()).casefold()
        if alike or (one.exists() and other.exists() and one.samefile(other)):
            raise D2CityscapesError(
                f"{one}: {other.name} is written beside it, and would be the same file; give the "
                "output another name"
            )
    check_not_read(outputs, inputs)


def check_not_read(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Refuse outputs that are an input, by any of its names.

    Args:
        outputs: what a command writes.
        inputs: what it reads; those that are not there do not count. They are looked for only where
            an output is there.

    Raises:
        D2CityscapesError: one that is read.
    """
    written = {key: path for path in outputs if (key := _identity(path))}
    for path in inputs if written else ():
        if (key := _identity(path)) in written:
            raise D2CityscapesError(
                f"{written[key]}: is read here too (as {path}) and would be overwritten; give the "
                "output another name"
            )


def check_beside(output: str | Path, *others: str | Path) -> None:
    """Refuse to overwrite what lies where a command would write beside the file that it was told.

    Where that file is there as well, an earlier run has written both.

    Raises:
        D2CityscapesError: such a file, of which nobody has spoken.
    """
    if Path(output).exists():
        return
    for other in others:
        if Path(other).exists():
            raise D2CityscapesError(
                f"{other}: is there, without {output} that it would be written beside; give the "
                "output another name, or move it away"
            )


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What tells an existing file from all others; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder, created if need be, and removed again if it is still empty in the end."""
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for created in new:
                created.rmdir()


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


def file_below(folder: Path, name: str) -> Path:
    """``folder / name``, where the name comes from elsewhere: it may not lead out of the folder.

    For names in other people's files, and those made from them, before anything is read or written
    there. Links that lie in the folder are the owner's and are followed.

    Args:
        folder: of one's own.
        name: a relative path with "/", such as "frankfurt/frankfurt_000000_000294.png".

    Raises:
        D2CityscapesError: a part of it is no plain name, see `is_plain_name`.
    """
    if not isinstance(name, str) or not all(map(is_plain_name, name.split("/"))):
        raise D2CityscapesError(
            f"{folder}: {name!r} is not the name of a file in this folder; nothing is read or "
            "written elsewhere"
        )
    return folder / name


@contextlib.contextmanager
def file_errors(path: str | Path, error_type: type[D2CityscapesError]) -> Iterator[None]:
    """Turn what keeps the block from reading a file into one line; what it holds is another matter.

    Raises:
        D2CityscapesError: of `error_type`: missing, too large for the memory, or what the system
            says.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise error_type(f"{path}: missing") from error
    except MemoryError as error:
        raise error_type(f"{path}: too large for the memory of this machine") from error
    except OSError as error:
        if error.errno is None:  # of a decoder
            raise
        raise error_type(f"{path}: cannot be read ({error.strerror})") from error


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return stream_sha256(file)


def stream_sha256(file: BinaryIO) -> str:
    """SHA-256 of what an open file holds from here on, in hexadecimal digits."""
    digest = hashlib.sha256()
    while part := file.read(_READ_AT_ONCE):
        digest.update(part)
    return digest.hexdigest()


def is_plain_name(name: object) -> bool:
    """Whether something from a foreign file is a text that names a file inside a folder, on any
    system: not another folder, not a drive, nothing hidden or that breaks a line."""
    return (
        isinstance(name, str)
        and not name.startswith(".")
        and 0 < len(name.encode("utf-8", "replace")) <= _LONGEST_NAME
        and name.isprintable()
        and not _LEAVES_FOLDER.search(name)
    )


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
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_made(folder))
            # Windows opens no folders, and has no locks of this kind
            descriptor = None if fcntl is None else os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise D2CityscapesError(f"{folder}: cannot be made ({error.strerror})") from error
        if descriptor is not None:
            stack.callback(os.close, descriptor)
        yield descriptor is not None and _lock(folder, descriptor)


def _lock(folder: Path, descriptor: int) -> bool:
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

"""Where a search keeps its trials: a database, or a journal file in a shared folder."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from d2_cityscapes.search.errors import SearchError

__all__ = ["SEARCH", "is_new", "open_storage", "shown", "storage_errors", "storage_file"]

SEARCH = "search"  # the study attribute that says what is searched
_JOURNAL = "journal:///"
_POSTGRESQL = "postgresql://"


def open_storage(url: str) -> BaseStorage:
    """Open a storage; a database or journal that is not there is created.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``postgresql://user@host/name``,
            or ``journal:///path``, a path as for sqlite.

    Raises:
        SearchError: it cannot be reached, or holds something else.
    """
    if not re.match(r"(sqlite|journal|postgresql(\+\w+)?)://", url):
        raise SearchError(
            f"--storage {shown(url)}: use sqlite:///FILE, postgresql://USER@HOST/NAME or "
            "journal:///FILE"
        )
    if url.startswith(_POSTGRESQL):
        url = _with_driver(url)
    # A file of something else makes Optuna, Alembic and the drivers stumble in many ways.
    with storage_errors(url, Exception):
        return _open_patiently(url)


def is_new(url: str) -> bool:
    """Whether the storage is a file that does not exist yet, in a folder that does."""
    path = storage_file(url)
    return path is not None and not path.exists() and path.parent.is_dir()


def storage_file(url: str) -> Path | None:
    """The file of a storage; None for a server."""
    found = re.fullmatch(r"(?:sqlite|journal):///(.+)", url)
    return Path(found[1]) if found else None


@contextlib.contextmanager
def storage_errors(url: str, *kinds: type[Exception]) -> Iterator[None]:
    """One clear line for what a database raises inside the block.

    Args:
        url: of the storage.
        kinds: exceptions that mean so; SQLAlchemy's and Optuna's own if none are given.
    """
    kinds = kinds or (SQLAlchemyError, StorageInternalError)
    try:
        yield
    except SearchError:
        raise
    except kinds as error:
        line = next(
            (x.strip() for x in str(error.__cause__ or error).splitlines() if x.strip()), ""
        )
        raise SearchError(
            f"--storage {shown(url)}: cannot be used ({type(error).__name__}: {line})"
        ) from error


def shown(url: str) -> str:
    """A storage's address without its password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _with_driver(url: str) -> str:
    """Versions of SQLAlchemy differ in the driver that they take by themselves."""
    if importlib.util.find_spec("psycopg2") is None:
        raise SearchError(
            f"--storage {shown(url)}: needs a driver: pip install 'd2_cityscapes[postgresql]'"
        )
    return url.replace(_POSTGRESQL, "postgresql+psycopg2://", 1)


def _open_patiently(url: str) -> BaseStorage:
    """Two that create the tables of one new database at once: the later one finds them made."""
    try:
        return _open(url)
    except (SQLAlchemyError, StorageInternalError):
        time.sleep(0.5)
        return _open(url)


def _open(url: str) -> BaseStorage:
    optuna.logging.disable_default_handler()  # it would tell of each new study
    if url.startswith(_JOURNAL):
        return _open_journal(Path(url.removeprefix(_JOURNAL)))
    # A worker that finds the file busy waits: a minute is more than any of our transactions.
    waits = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    checks = {} if url.startswith("sqlite") else {"pool_pre_ping": True}
    return RDBStorage(url, engine_kwargs={**waits, **checks})


def _open_journal(path: Path) -> BaseStorage:
    if not path.parent.is_dir():
        raise SearchError(f"{path.parent}: no such folder for the journal")
    return JournalStorage(JournalFileBackend(str(path)))

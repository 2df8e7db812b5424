"""The errors that a user can cause. Commands print them as one line and exit with code 1.

Also what several of these lines have in common: lists cut short, and the names that were meant.
"""

from __future__ import annotations

import contextlib
import difflib
import linecache
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

__all__ = [
    "INTERRUPTED",
    "D2CityscapesError",
    "MissingDetectron2Error",
    "building",
    "first_few",
    "nearest",
    "run",
]

INTERRUPTED = 130  # exit code after Ctrl-C
_NOBODY_READS = 141  # exit code of what the end of a pipe stops, as in "command | head"
_IN_ONE_LINE = 8  # problems
# Who says what a config has wrong by an assertion, and who is ours.
_FOREIGN, _OURS = ("detectron2", "fvcore"), __name__.partition(".")[0]


class D2CityscapesError(Exception):
    """Base of every error of this package: one line that says what, where and what to do.

    Attributes:
        details: more lines, where one problem was found many times; commands print them above the
            line.
    """

    def __init__(self, *args: object, details: Sequence[str] = ()) -> None:
        super().__init__(*args)
        self.details = tuple(details)

    @classmethod
    def of_many(cls, problems: Sequence[str], remedy: str) -> D2CityscapesError:
        """One error for any number of problems: few stand in its line, many above it."""
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        if len(problems) > _IN_ONE_LINE:
            return cls(f"{count}, listed above; {remedy}", details=problems)
        return cls(f"{count}: {'; '.join(problems)}; {remedy}")


class MissingDetectron2Error(D2CityscapesError, ImportError):
    """A glue component was asked for on a machine without Detectron2."""


def first_few(values: Sequence[object], most: int) -> str:
    """ "a, b, c", or "a, b, ..." where there are more than `most`."""
    return ", ".join(map(str, values[:most])) + (", ..." if len(values) > most else "")


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """ "; nearest: a, b" for the end of an error about an unknown name; "" where none is like it.

    Args:
        name: the unknown one.
        known: those that there are.
        cutoff: how alike a name has to be, 0 to 1.
    """
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)
    return f"; nearest: {', '.join(found)}" if found else ""


@contextlib.contextmanager
def building(what: str) -> Iterator[None]:
    """Make one line of what Detectron2 raises while it builds something from a config.

    Of the frames of this package, of Detectron2 and of fvcore, the innermost decides: where it is
    ours, the error is a defect of ours, and stays as it is.

    Args:
        what: is built, e.g. "the model".

    Raises:
        D2CityscapesError: naming the component and the reason.
    """
    try:
        yield
    except D2CityscapesError:
        raise
    except Exception as error:
        place = _place(error)
        if place is None:
            raise
        reason = " ".join(str(error).split())
        raise D2CityscapesError(
            f"{what} cannot be built from this config: {place}: {type(error).__name__}"
            f"{': ' * bool(reason)}{reason}"
        ) from error


def _place(error: Exception) -> str | None:
    """Component, and line of code where there are no other words, if it is not a place of ours."""
    for frame, number in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] == _OURS:
            return None
        if module.partition(".")[0] in _FOREIGN:
            line = linecache.getline(frame.f_code.co_filename, number).strip()
            shown = f" ({line})" if line and not str(error).strip() else ""
            code = frame.f_code
            # with the class that it belongs to, from Python 3.11 on
            return f"{module}, {getattr(code, 'co_qualname', code.co_name)}{shown}"
    return None


def run(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and leave the process: 0 done, 1 failed with one line.

    The details of an error stand above that line. Only `D2CityscapesError` counts as a user's
    mistake; anything else is a defect of ours and keeps its traceback. Where nobody reads the
    output to its end, as behind ``| head``, the command ends without a word, as others do.
    """
    try:
        try:
            code = _exit_code(main)
        finally:  # --help leaves by SystemExit
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        code = _NOBODY_READS
    sys.exit(code)


def _exit_code(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except D2CityscapesError as error:
        for line in (*error.details, f"error: {error}"):
            print(line, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _nobody_reads() -> bool:
    """Whether stdout or stderr is a pipe without a reader; what they still hold is dropped."""
    broken = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream)]
    for stream in broken:  # or Python tries once more when it ends, and complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(broken)


def _is_broken(stream: TextIO | None) -> bool:
    if stream is None or not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no file behind it
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))

"""The errors that a user can cause. Commands print them as one line and exit with code 1.

Also what several of these lines have in common: lists cut short, and the names that were meant.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "INTERRUPTED",
    "D2CityscapesError",
    "MissingDetectron2Error",
    "first_few",
    "nearest",
    "run",
]

INTERRUPTED = 130  # exit code after Ctrl-C
_IN_ONE_LINE = 8  # problems


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


def run(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and leave the process: 0 done, 1 failed with one line.

    The details of an error stand above that line. Only `D2CityscapesError` counts as a user's
    mistake; anything else is a defect of ours and keeps its traceback.
    """
    try:
        code = main() or 0
    except MissingDetectron2Error:
        code = 1  # importing the package has just logged the same line
    except D2CityscapesError as error:
        for line in (*error.details, f"error: {error}"):
            print(line, file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)

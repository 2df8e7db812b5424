"""What every command shares: one line and exit code 1 for a user's mistake, never a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from d2_cityscapes.errors import D2CityscapesError, MissingDetectron2Error

__all__ = ["HelpFormatter", "run"]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that shows default values and keeps the line breaks of the description."""


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
        code = 130
    sys.exit(code)

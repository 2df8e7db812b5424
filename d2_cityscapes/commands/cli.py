"""What the command lines share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

__all__ = ["HelpFormatter", "add_allow_pickle", "from_scratch", "not_negative", "positive"]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that shows default values and keeps the line breaks of the description."""


def add_allow_pickle(parser: argparse.ArgumentParser) -> None:
    """``--allow-pickle``, for what `d2_cityscapes.tensor_files.pickles_allowed` says."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read weights of your own that hold other objects too, which runs code in them",
    )


def positive(text: str) -> int:
    """A whole number from 1 on, as a type for argparse, which refuses any other."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """A whole number from 0 on, likewise."""
    return _at_least(0, text)


def from_scratch(parser: argparse.ArgumentParser, opts: Sequence[str]) -> list[str]:
    """KEY VALUE overrides with those of ``--from-scratch``, which goes with no MODEL.WEIGHTS."""
    if "MODEL.WEIGHTS" in opts[::2]:
        parser.error("--from-scratch and MODEL.WEIGHTS do not go together")
    return [*opts, "MODEL.FROM_SCRATCH", "True", "MODEL.WEIGHTS", ""]


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return number

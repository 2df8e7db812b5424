"""What the command lines share."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["CHECKOUT", "HelpFormatter"]

# Root of the checkout, with configs/ and tools/.
CHECKOUT = Path(__file__).resolve().parents[2]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that shows default values and keeps the line breaks of the description."""

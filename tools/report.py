#!/usr/bin/env python
"""Write one page about a training; --help says how."""

from d2_cityscapes.commands.report import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

#!/usr/bin/env python
"""Search hyperparameters of any training config; --help says how."""

from d2_cityscapes.commands.search import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

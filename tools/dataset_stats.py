#!/usr/bin/env python
"""Count the objects of a split; --help says how."""

from d2_cityscapes.commands.dataset_stats import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

#!/usr/bin/env python
"""Pack a downloaded dataset into shards; --help says how."""

from d2_cityscapes.commands.prepare_shards import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

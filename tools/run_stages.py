#!/usr/bin/env python
"""Train the stages of the recipe in sequence; --help says how."""

from d2_cityscapes.commands.run_stages import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

#!/usr/bin/env python
"""Make up street scenes in the layout of Cityscapes; --help says how."""

from d2_cityscapes.commands.make_synthetic import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

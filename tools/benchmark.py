#!/usr/bin/env python
"""Measure this package beside stock Detectron2 and the official tools; --help says how."""

from d2_cityscapes.commands.benchmark import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

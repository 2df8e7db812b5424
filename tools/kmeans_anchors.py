#!/usr/bin/env python
"""Fit anchors to the training boxes of a config; --help says how."""

from d2_cityscapes.commands.kmeans_anchors import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

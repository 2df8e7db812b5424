#!/usr/bin/env python
"""Train or evaluate a model that a config describes; --help says how."""

from d2_cityscapes.commands.train_net import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

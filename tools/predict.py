#!/usr/bin/env python
"""Predict pictures with a trained model; --help says how."""

from d2_cityscapes.commands.predict import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

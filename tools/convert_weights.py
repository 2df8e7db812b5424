#!/usr/bin/env python
"""Convert weights from and to other code bases; --help says how."""

import os
import sys

if "to-detectron2" not in sys.argv:  # the others need plain rooms only
    os.environ["D2_CITYSCAPES_PLAIN"] = "1"

from d2_cityscapes.commands.convert_weights import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

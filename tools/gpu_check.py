#!/usr/bin/env python
"""What this package does on your GPU, in ten minutes; --help says how."""

from d2_cityscapes.commands.gpu_check import main
from d2_cityscapes.errors import run

if __name__ == "__main__":
    run(main)

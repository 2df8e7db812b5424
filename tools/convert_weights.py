#!/usr/bin/env python
"""Convert weights from and to other code bases; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("convert_weights")

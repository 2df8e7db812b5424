#!/usr/bin/env python
"""Make up street scenes in the layout of Cityscapes; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("make_synthetic")

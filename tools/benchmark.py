#!/usr/bin/env python
"""Measure this package beside stock Detectron2 and the official tools; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("benchmark")

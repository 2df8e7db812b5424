#!/usr/bin/env python
"""What this package does on your GPU, in ten minutes; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("gpu_check")

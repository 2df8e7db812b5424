#!/usr/bin/env python
"""Write one page about a training; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("report")

#!/usr/bin/env python
"""Search hyperparameters of any training config; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("search")

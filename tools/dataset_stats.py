#!/usr/bin/env python
"""Count the objects of a split; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("dataset_stats")

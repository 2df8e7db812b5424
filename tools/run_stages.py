#!/usr/bin/env python
"""Train the stages of the recipe in sequence; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("run_stages")

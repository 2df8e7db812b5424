#!/usr/bin/env python
"""Export a trained model to run elsewhere; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("export")

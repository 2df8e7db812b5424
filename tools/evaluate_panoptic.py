#!/usr/bin/env python
"""Score anybody's panoptic predictions; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("evaluate_panoptic")

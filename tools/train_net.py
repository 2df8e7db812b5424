#!/usr/bin/env python
"""Train or evaluate a model that a config describes; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("train_net")

#!/usr/bin/env python
"""Predict pictures with a trained model; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("predict")

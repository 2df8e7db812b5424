#!/usr/bin/env python
"""Fit anchors to the training boxes of a config; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("kmeans_anchors")

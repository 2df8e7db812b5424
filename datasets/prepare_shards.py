#!/usr/bin/env python
"""Pack a downloaded dataset into shards; --help says how."""

from d2c import run_command

if __name__ == "__main__":
    run_command("prepare_shards")

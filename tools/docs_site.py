#!/usr/bin/env python3
"""Build the documentation site (see --help): runs the package in the folder of the same name."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from docs_site.command import main  # the folder: a package wins over this file

    sys.exit(main())

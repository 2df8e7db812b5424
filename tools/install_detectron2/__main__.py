"""`python tools/install_detectron2`, or `python -m` and the package's name."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if __package__:
        from .command import main
    else:  # a folder is run without being a package, and as sys.path[0]
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
        from install_detectron2.command import main

    sys.exit(main())

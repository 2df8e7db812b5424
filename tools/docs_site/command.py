"""The command."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from docs_site.pages import PageError, write_pages

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[2]
_PAGES = _ROOT / "build" / "docs_site"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(
        description="Build the documentation site: write its pages, from docs/, "
        "configs/README.md, datasets/README.md, CHANGELOG.md, CONTRIBUTING.md, the comments of "
        "d2_cityscapes/config.py and the docstrings of what is public, and let MkDocs make a site "
        "of them. A link or an anchor that leads nowhere, and a page that is in no menu, is an "
        "error. Imports nothing of d2_cityscapes, so that neither PyTorch nor Detectron2 is needed."
    )
    parser.add_argument("--output", type=Path, default=_ROOT / "site", help="folder of the site")
    parser.add_argument(
        "--pages", type=Path, default=_PAGES, help="folder of the pages, emptied first"
    )
    args = parser.parse_args(argv)
    try:
        write_pages(_ROOT, args.pages)
    except PageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if importlib.util.find_spec("mkdocs") is None:
        print("error: no MkDocs: pip install -r docs/requirements.txt", file=sys.stderr)
        return 1
    # --quiet would hide warnings from --strict too
    build = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    environment = {
        **os.environ,
        "DOCS_PAGES": str(args.pages.absolute()),  # for mkdocs.yml
        "NO_MKDOCS_2_WARNING": "1",  # of the theme, on every build
    }
    done = subprocess.run(
        [*build, "--site-dir", str(args.output.absolute())], cwd=_ROOT, env=environment
    )
    if done.returncode == 0:
        print(f"site: {args.output / 'index.html'}")
    return done.returncode

"""tools/docs_site, importable."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
from docs_site import pages  # noqa: F401  (loads all of it)

sys.path.pop(0)

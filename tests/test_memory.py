"""Large arrays that come and go are given memory that is there already."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
import numpy as np
from d2_cityscapes.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (2_500_000, 3_000_000, 2_000_000) * 10:
        np.ones(size, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
assert faults() < 3_000, "pages are found anew for each array"
"""


def test_freed_memory_is_used_again():
    subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], check=True, timeout=100)

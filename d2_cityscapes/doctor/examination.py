"""All that the doctor looks at, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from d2_cityscapes.doctor.findings import Finding
from d2_cityscapes.doctor.machine import machine_findings
from d2_cityscapes.doctor.software import has_torch, software_findings

__all__ = ["examine"]


def examine(output: Path) -> list[Finding]:
    """What was found; without PyTorch, of which it says so, only what needs none.

    Args:
        output: where runs will be written.
    """
    return list(_findings(output))


def _findings(output: Path) -> Iterator[Finding]:
    yield from software_findings()
    yield from machine_findings(output)
    if not has_torch():
        return
    from d2_cityscapes.doctor.datasets import dataset_findings
    from d2_cityscapes.doctor.model import model_findings

    yield from dataset_findings()
    yield from model_findings()

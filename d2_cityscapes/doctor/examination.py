"""All that the doctor looks at, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from d2_cityscapes.doctor.findings import Finding
from d2_cityscapes.doctor.machine import machine_findings
from d2_cityscapes.doctor.software import has_torch, software_findings

__all__ = ["examine"]

_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}  # of modules of other names


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
    for topic, find in (("datasets", _datasets), ("model", _model)):
        try:
            look = find()
        except (ImportError, OSError) as error:  # of what is missing, or lacks a library itself
            module = getattr(error, "name", None) or "torch torchvision"
            yield Finding(
                topic,
                "cannot be looked at",
                " ".join(f"{type(error).__name__}: {error}".split()),
                f"pip install --force-reinstall {_DISTRIBUTIONS.get(module, module)}",
            )
        else:
            yield from look()


def _datasets() -> Callable[[], Iterator[Finding]]:
    from d2_cityscapes.doctor.datasets import dataset_findings

    return dataset_findings


def _model() -> Callable[[], Iterator[Finding]]:
    from d2_cityscapes.doctor.model import model_findings

    return model_findings

"""How often an image comes in an epoch, by what the tables of the shards say is in it.

Shape letters: N images, C classes with instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["class_balanced_factors", "factor_table", "small_object_factors"]


def class_balanced_factors(
    dicts: Sequence[dict[str, Any]], share: float, num_classes: int
) -> torch.Tensor:
    """(N,) float32: a part of an epoch is drawn class by class, the rest image by image.

    It is the class-uniform sampling of Zhu et al., "Improving Semantic Segmentation via Video
    Propagation and Label Relaxation", CVPR 2019, over whole images: every class that has instances
    gets the same part of `share`, and inside of a class every image with an instance of it. On
    average a factor is 1, so that an epoch is as long as without.

    Args:
        dicts: dataset dicts; no pixel is read.
        share: the part, from 0 to 1.
        num_classes: C.

    Raises:
        D2CityscapesError: a share that is none, or no instance at all.
    """
    present = _counts(dicts, num_classes) > 0
    images = present.sum(axis=0)
    seen = images > 0
    chances = (present[:, seen] / images[seen]).sum(axis=1)
    return _mixed(chances, share, "an instance")


def small_object_factors(
    dicts: Sequence[dict[str, Any]], share: float, num_classes: int, area: float
) -> torch.Tensor:
    """(N,) float32: a part of an epoch is drawn small object by small object.

    Images with small objects come more often, as in Kisantal et al., "Augmentation for Small Object
    Detection", 2019; here by how many there are, since nearly every street has some.

    Args:
        dicts: dataset dicts; no pixel is read.
        share: the part, from 0 to 1.
        num_classes: C.
        area: px^2 of the stored picture below which an object is small.

    Raises:
        D2CityscapesError: a share that is none, or no small object at all.
    """
    small = _counts(dicts, num_classes, area).sum(axis=1)
    return _mixed(small, share, f"an instance below {area:g} px (DATALOADER.SMALL_AREA)")


def factor_table(
    dicts: Sequence[dict[str, Any]], factors: torch.Tensor, names: Sequence[str], area: float
) -> str:
    """For each class images, instances and small ones, and how often its images come.

    Args:
        dicts: dataset dicts.
        factors: (N,) of them.
        names: of the C classes.
        area: px^2 below which an instance is small.
    """
    instances = _counts(dicts, len(names))
    small = _counts(dicts, len(names), area)
    rows = [f"{'class':<16}{'images':>8}{'instances':>11}{f'< {area:g} px':>11}{'factor':>8}"]
    for k, name in enumerate(names):
        has = instances[:, k] > 0
        factor = f"{factors.numpy()[has].mean():.2f}" if has.any() else "-"
        numbers = f"{has.sum():>8}{instances[:, k].sum():>11}{small[:, k].sum():>11}"
        rows.append(f"{name:<16}{numbers}{factor:>8}")
    spread = f"{float(factors.min()):.2f} to {float(factors.max()):.2f}"
    rows.append(f"images come {spread} times in an epoch of about {float(factors.sum()):.0f}")
    return "\n".join(rows)


def _counts(dicts: Sequence[dict[str, Any]], num_classes: int, area: float = np.inf) -> np.ndarray:
    """(N, C) int64 instances below an area, groups left out."""
    found = np.zeros((len(dicts), num_classes), dtype=np.int64)
    for row, one in enumerate(dicts):
        for a in one.get("annotations", ()):
            if not a.get("iscrowd", 0) and a["area"] < area:
                found[row, a["category_id"]] += 1
    return found


def _mixed(chances: np.ndarray, share: float, wanted: str) -> torch.Tensor:
    if not 0 <= share <= 1:
        raise D2CityscapesError(f"DATALOADER.BALANCE {share}: use a part of an epoch, from 0 to 1")
    total = chances.sum()
    if not total:
        raise D2CityscapesError(
            f"DATALOADER.SAMPLER_TRAIN: none of {len(chances)} images has {wanted} to draw by; use "
            "TrainingSampler"
        )
    return torch.from_numpy(1 - share + share * chances * len(chances) / total).float()

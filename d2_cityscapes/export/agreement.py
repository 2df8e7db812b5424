"""How far the results of an export are from those of its model, picture by picture.

Shape letters: H, W pixels; N detections.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["BOX", "PARTS", "SCORES", "Agreement"]

PARTS = 0.999  # least part of pixels and of detections that are the same
BOX = 0.5  # pixels between the sides of boxes that count as one
SCORES = 0.1  # AP, PQ and mIoU may differ by, in percent


@dataclass
class Agreement:
    """Counts over pictures; larger is worse for differences only.

    Attributes:
        pictures: how many.
        pixels: of all maps of train ids together.
        equal_pixels: of the same class.
        panoptic_pixels, equal_panoptic: likewise of panoptic ids, whatever the number of an object.
        detections: of the model and of the export together.
        twins: those with a twin on the other side: the same class, sides within `BOX`.
        box_difference: largest between twins, in pixels.
        score_difference: likewise, of scores 0..1.
        mask_pixels: of the masks of the model's twins.
        mask_difference: pixels by which the masks of twins differ.
    """

    pictures: int = 0
    pixels: int = 0
    equal_pixels: int = 0
    panoptic_pixels: int = 0
    equal_panoptic: int = 0
    detections: int = 0
    twins: int = 0
    box_difference: float = 0.0
    score_difference: float = 0.0
    mask_pixels: int = 0
    mask_difference: int = 0

    def add(self, model: dict[str, Any], export: dict[str, Any]) -> None:
        """Take in a picture: what both give for it, as run.py does."""
        self.pictures += 1
        if "sem_seg" in model and "sem_seg" in export:
            self.pixels += model["sem_seg"].size
            self.equal_pixels += int((model["sem_seg"] == export["sem_seg"]).sum())
        if "panoptic_ids" in model and "panoptic_ids" in export:
            self.panoptic_pixels += model["panoptic_ids"].size
            self.equal_panoptic += _same_segments(model["panoptic_ids"], export["panoptic_ids"])
        if "instances" in model and "instances" in export:
            self._add_instances(model["instances"], export["instances"])

    def problems(self) -> list[str]:
        """What is beyond the tolerances, in words; [] where nothing is."""
        parts = {
            "pixels of equal class": (self.equal_pixels, self.pixels),
            "pixels of equal panoptic segments": (self.equal_panoptic, self.panoptic_pixels),
            f"detections with a twin (same class, {BOX} px)": (self.twins, self.detections),
            "pixels of equal masks": (self.mask_pixels - self.mask_difference, self.mask_pixels),
        }
        return [
            f"{name}: {own} of {all_} ({100 * own / all_:.3f} %, at least {100 * PARTS:.1f} %)"
            for name, (own, all_) in parts.items()
            if own < PARTS * all_
        ]

    def numbers(self) -> dict[str, int | float]:
        return asdict(self)

    def lines(self) -> list[str]:
        """What was found, for people."""
        found = [f"compared on {self.pictures} pictures"]
        for name, own, all_ in (
            ("semantics", self.equal_pixels, self.pixels),
            ("panoptics", self.equal_panoptic, self.panoptic_pixels),
        ):
            if all_:
                found.append(f"{name}: {100 * own / all_:.4f} % of {all_} pixels equal")
        if self.detections:
            found.append(
                f"detections: {self.twins} of {self.detections} have a twin; boxes within "
                f"{self.box_difference:.2g} px, scores within {self.score_difference:.2g}, masks "
                f"differ in {self.mask_difference} of {self.mask_pixels} pixels"
            )
        return found

    def _add_instances(self, model: dict[str, Any], export: dict[str, Any]) -> None:
        self.detections += len(model["scores"]) + len(export["scores"])
        free = np.ones(len(export["scores"]), dtype=bool)
        for i, box in enumerate(model["boxes"]):
            apart = np.abs(export["boxes"] - box).max(axis=1, initial=0.0)
            can = free & (export["classes"] == model["classes"][i]) & (apart <= BOX)
            if not can.any():
                continue
            scores = np.abs(export["scores"] - model["scores"][i])
            j = int(np.where(can, apart + scores, np.inf).argmin())
            free[j] = False
            self.twins += 2
            self.box_difference = max(self.box_difference, float(apart[j]))
            self.score_difference = max(self.score_difference, float(scores[j]))
            if "masks" in model:
                self.mask_pixels += int(model["masks"][i].sum())
                self.mask_difference += int((model["masks"][i] ^ export["masks"][j]).sum())


def _same_segments(one: np.ndarray, other: np.ndarray) -> int:
    """Pixels of segments that are the same but for their number.

    A segment is held against the one of the same class that it shares most pixels with, from both
    sides, and the worse of the two counts is taken.
    """
    pairs, counts = np.unique(
        np.stack([one.ravel(), other.ravel()]).astype(np.int64), axis=1, return_counts=True
    )
    kinds = np.where(pairs >= 1000, pairs // 1000, pairs)
    counts = np.where(kinds[0] == kinds[1], counts, 0)
    return min(_best(own, counts) for own in pairs)


def _best(segments: np.ndarray, counts: np.ndarray) -> int:
    """The sum over segments of their largest count."""
    _, which = np.unique(segments, return_inverse=True)
    best = np.zeros(which.max(initial=-1) + 1, dtype=np.int64)
    np.maximum.at(best, which.ravel(), counts)
    return int(best.sum())

"""Which images of DATASETS.TRAIN a training sees, and the record of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations

from d2_cityscapes.config import model_tasks
from d2_cityscapes.data.register import has_truth
from d2_cityscapes.errors import D2CityscapesError

__all__ = ["LoaderError", "TrainingImages", "training_images", "training_set"]


class LoaderError(D2CityscapesError):
    """A training set, sampler or batch size that cannot be used."""


@dataclass(frozen=True)
class TrainingImages:
    """What a training sees of DATASETS.TRAIN.

    Attributes:
        used: number of images that are trained on, each counted once however often a sampler
            repeats it.
        total: number of images that the datasets have together.
        left_out: why others are not trained on -> how many.
    """

    used: int
    total: int
    left_out: Mapping[str, int]

    def __str__(self) -> str:
        """ "14 of 24 images (10 without instances: DATALOADER.FILTER_EMPTY_ANNOTATIONS)"."""
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.left_out.items())
        return f"{self.used} of {self.total} images" + (f" ({reasons})" if reasons else "")


def training_images(cfg: CfgNode) -> TrainingImages:
    """The second half of `training_set`."""
    return training_set(cfg)[1]


def training_set(cfg: CfgNode) -> tuple[list[dict], TrainingImages]:
    """The dicts of DATASETS.TRAIN that samplers get, and the record of what becomes of all.

    Images without instances are left out where DATALOADER.FILTER_EMPTY_ANNOTATIONS asks for it and
    the model predicts instances alone: a semantic head learns from road and sky as well.

    Raises:
        LoaderError: none is left, or a dataset that is not one of shards or has no truth.
    """
    every = _all_dicts(cfg)
    dicts = _filtered(cfg, every)
    usable = used = len(dicts)
    if cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        # as its sampler counts; a ratio that leaves none is the loader's to refuse
        used = max(int(usable * cfg.DATALOADER.RANDOM_SUBSET_RATIO), 1)
    left_out = {
        "without instances: DATALOADER.FILTER_EMPTY_ANNOTATIONS": len(every) - usable,
        "not in the subset: DATALOADER.RANDOM_SUBSET_RATIO": usable - used,
    }
    reasons = {why: n for why, n in left_out.items() if n}
    return dicts, TrainingImages(used, len(every), reasons)


def _all_dicts(cfg: CfgNode) -> list[dict]:
    """Dataset dicts of all images of DATASETS.TRAIN."""
    names = ", ".join(cfg.DATASETS.TRAIN)
    try:
        dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    except AssertionError as error:  # Detectron2's word for datasets that cannot be used
        raise LoaderError(f"DATASETS.TRAIN {names}: {error}") from error
    if not all("shard" in d for d in dicts):
        raise LoaderError(
            f"DATASETS.TRAIN {names}: not datasets of shards; register them with "
            "d2_cityscapes.data.register_cityscapes_shards"
        )
    for name in cfg.DATASETS.TRAIN:
        if not has_truth(name):
            raise LoaderError(
                f"DATASETS.TRAIN {name}: has no annotations to train on; it is for --eval-only "
                "with TEST.SUBMISSION True"
            )
    return dicts


def _filtered(cfg: CfgNode, dicts: list[dict]) -> list[dict]:
    tasks = model_tasks(cfg)
    if (
        not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        or "bbox" not in tasks
        or {"sem_seg", "panoptic_seg"} & {*tasks}
    ):
        return dicts
    kept = filter_images_with_only_crowd_annotations(dicts)
    if not kept:
        raise LoaderError(
            f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: No valid data found: none of "
            f"{len(dicts)} images has an instance (images without are left out: "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
        )
    return kept

"""From a dataset dict to what the models take: one mapper, tasks as flags."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from d2_cityscapes.config import model_tasks
from d2_cityscapes.data.augmentation import ImageAndIds, build_augmentation, check_resize_backend
from d2_cityscapes.data.augmentation.color_jitter import ColorJitter
from d2_cityscapes.data.augmentation.copy_paste import CopyPaste
from d2_cityscapes.data.augmentation.image_and_ids import StoredRecord
from d2_cityscapes.data.register import label_table_of
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.labels.instances import (
    InstanceTable,
    find_instances,
    group_small,
    panoptic_segments,
)
from d2_cityscapes.shards.reader import open_shard
from d2_cityscapes.structures import IdMapMasks

__all__ = ["PASTE_FROM", "CityscapesShardMapper"]

logger = logging.getLogger(__name__)

PASTE_FROM = "paste_from"  # in a dataset dict: that of a second record, for INPUT.COPY_PASTE


class CityscapesShardMapper:
    """Reads a record, augments image and instance-id map together, and builds the targets.

    The result has "image", (3, h, w) uint8 in the configured channel order, and in training

    * "instances": boxes, thing ids and masks of the instances that are left after augmentation,
      group regions excluded. Boxes are tight around the augmented masks, which stay in the id map
      (`IdMapMasks`).
    * "sem_seg": (h, w) int64 train ids, 255 where void. Group regions keep their class.
    * "panoptic_seg": (h, w) int32 segment ids, 0 where void, and their info dicts, in Detectron2's
      panoptic format with train ids as categories. Group regions have iscrowd 1.

    The other fields of the dataset dict are passed on, but not "annotations". INPUT.CROP acts after
    the resize, as in DeepLab: its size is the network's input, and anchors fitted to resized boxes
    stay right.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str = "BGR",
        instances: bool = True,
        masks: bool = True,
        sem_seg: bool = False,
        panoptic: bool = False,
        min_instance_area: int = 0,
        small_instance_weight: float = 1.0,
        small_instance_area: int = 4096,
        resize_backend: str = "torch",
        table: LabelTable = CITYSCAPES,
    ) -> None:
        """
        Args:
            is_train: whether to build targets.
            augmentations: Detectron2 augmentations; the id map follows the image, with nearest
                neighbour where it is resized.
            image_format: "RGB" or "BGR".
            instances: build "instances".
            masks: with gt_masks.
            sem_seg: build "sem_seg".
            panoptic: build "panoptic_seg".
            min_instance_area: instances of fewer pixels than this after augmentation are left out,
                and become group regions of their class in the panoptic target.
            small_instance_weight: of the pixels of small instances in "sem_seg_weights", (h, w)
                float32 and 1 elsewhere, and of these instances in their "gt_weights", (N,) float32;
                at 1 there are neither.
            small_instance_area: pixels after augmentation below which an instance is small.
            resize_backend: "torch", "pil" or "plain", see
                `d2_cityscapes.data.augmentation.resize_image`.
            table: the classes.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self._pastes = is_train and any(isinstance(a, CopyPaste) for a in augmentations)
        self._planar = any(isinstance(a, ColorJitter) for a in augmentations)
        self.image_format = image_format
        self.instances = instances
        self.masks = masks
        self.sem_seg = sem_seg
        self.panoptic = panoptic
        self.min_instance_area = min_instance_area
        if small_instance_weight <= 0 or small_instance_area < 0:
            raise D2CityscapesError(
                f"INPUT.SMALL_INSTANCE_WEIGHT {small_instance_weight} with SMALL_INSTANCE_AREA "
                f"{small_instance_area}: use a weight above 0, 1.0 for none, and an area in pixels"
            )
        self.small_instance_weight = small_instance_weight
        self.small_instance_area = small_instance_area
        self.resize_backend = check_resize_backend(resize_backend)
        self.table = table
        logger.info("augmentations in %s: %s", "training" if is_train else "test", augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        tasks = model_tasks(cfg)
        return {
            "is_train": is_train,
            "augmentations": build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "instances": "bbox" in tasks,
            "masks": "segm" in tasks,
            "sem_seg": "sem_seg" in tasks,
            "min_instance_area": cfg.INPUT.MIN_INSTANCE_AREA,
            "small_instance_weight": cfg.INPUT.SMALL_INSTANCE_WEIGHT,
            "small_instance_area": cfg.INPUT.SMALL_INSTANCE_AREA,
            "resize_backend": cfg.INPUT.RESIZE_BACKEND,
            "table": label_table_of(cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST),
        }

    def __call__(self, dataset_dict: dict) -> dict:
        passed_over = ("annotations", PASTE_FROM)
        output = {key: value for key, value in dataset_dict.items() if key not in passed_over}
        reader, index = open_shard(dataset_dict["shard"], self.table), dataset_dict["index"]
        ids = reader.id_map(index) if self.is_train else None
        mixed: dict = {}
        if self._pastes:
            mixed["instances"] = reader.table(index)
            mixed["second"] = partial(self._read, _second_of(dataset_dict))
        augmented = self.augment(reader.image(index), ids, **mixed)
        output["image"] = augmented.pixels
        if augmented.ids is not None:
            output |= self._targets(np.ascontiguousarray(augmented.ids))
        return output

    def augment(
        self,
        pixels: torch.Tensor,
        ids: np.ndarray | None = None,
        *,
        instances: InstanceTable | None = None,
        second: Callable[[], StoredRecord] | None = None,
    ) -> ImageAndIds:
        """An image as the model takes it, with its ids.

        Args:
            pixels: (3, H, W) uint8 RGB.
            ids: (H, W) uint16 instance ids, or None.
            instances: see `ImageAndIds`.
            second: likewise.
        """
        augmented = ImageAndIds(
            pixels.flip(0) if self.image_format == "BGR" else pixels,
            ids,
            self.table,
            resize_backend=self.resize_backend,
            planar=self._planar,
            instances=instances,
            second=second,
        )
        self.augmentations(augmented)
        kept = augmented.pixels
        if kept.untyped_storage().nbytes() > kept.numel():  # a crop would carry the whole along
            augmented.pixels = kept.clone(memory_format=torch.contiguous_format)
        return augmented

    def _read(self, dataset_dict: dict) -> StoredRecord:
        reader, index = open_shard(dataset_dict["shard"], self.table), dataset_dict["index"]
        return StoredRecord(reader.image(index), reader.id_map(index), reader.table(index))

    def _targets(self, ids: np.ndarray) -> dict:
        targets: dict = {}
        weighted = self.small_instance_weight != 1
        if self.instances or self.panoptic or weighted:
            found = find_instances(ids, self.table)
            ids = group_small(ids, found, self.min_instance_area)
        if self.instances:
            targets["instances"] = self._instances(ids, found)
        if self.sem_seg:
            targets["sem_seg"] = torch.from_numpy(self.table.train_id_of[ids].astype(np.int64))
        if self.sem_seg and weighted:
            targets["sem_seg_weights"] = self._pixel_weights(ids, found)
        if self.panoptic:
            panoptic, segments_info = panoptic_segments(ids, self.table)
            targets["panoptic_seg"] = torch.from_numpy(panoptic), segments_info
        return targets

    def _instances(self, ids: np.ndarray, found: InstanceTable) -> Instances:
        found = found.select(~found.crowd & (found.areas >= self.min_instance_area))
        target = Instances(ids.shape)
        target.gt_boxes = Boxes(torch.from_numpy(found.boxes.astype(np.float32)))
        target.gt_classes = torch.from_numpy(self.table.thing_id_of_train[found.classes])
        if self.masks:
            target.gt_masks = IdMapMasks(_as_tensor(ids), _as_tensor(found.ids.astype(np.uint16)))
        if self.masks and self.small_instance_weight != 1:
            weights = np.where(self._are_small(found), self.small_instance_weight, 1.0)
            target.gt_weights = torch.from_numpy(weights.astype(np.float32))
        return target

    def _are_small(self, found: InstanceTable) -> np.ndarray:
        """(N,) bool, of instances; a group has no size."""
        return ~found.crowd & (found.areas < self.small_instance_area)

    def _pixel_weights(self, ids: np.ndarray, found: InstanceTable) -> torch.Tensor:
        weights = np.ones(ids.shape, dtype=np.float32)
        small = found.select(self._are_small(found) & (found.areas >= self.min_instance_area))
        for own, (x0, y0, x1, y1) in zip(small.ids.tolist(), small.boxes.tolist(), strict=True):
            window = np.s_[y0:y1, x0:x1]
            weights[window][ids[window] == own] = self.small_instance_weight
        return torch.from_numpy(weights)


def _second_of(dataset_dict: dict) -> dict:
    try:
        return dataset_dict[PASTE_FROM]
    except KeyError as error:
        raise D2CityscapesError(
            "INPUT.COPY_PASTE.PROB: this loader gives no second image to paste from; take "
            "d2_cityscapes.data.loader.build_train_loader, or set it to 0"
        ) from error


def _as_tensor(ids: np.ndarray) -> torch.Tensor:
    """uint16 ids as int16 with the same bits: few operations of torch take uint16.

    Ids above 32767 turn negative, in map and list alike; masks only ask which are equal.
    """
    return torch.from_numpy(ids.view(np.int16))

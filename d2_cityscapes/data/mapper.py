"""From a dataset dict to what the models take: one mapper, tasks as flags."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from PIL import Image

from d2_cityscapes.config import model_tasks
from d2_cityscapes.data.instances import find_instances, instance_masks
from d2_cityscapes.data.shards import open_shard
from d2_cityscapes.labels import CITYSCAPES, LabelTable

__all__ = ["CityscapesShardMapper"]

logger = logging.getLogger(__name__)


class CityscapesShardMapper:
    """Reads a record, augments image and instance-id map together, and builds the targets.

    The result has "image", (3, h, w) uint8 in the configured channel order, and in training

    * "instances": boxes, thing ids and masks of the instances that are left after augmentation,
      group regions excluded. Boxes are tight around the augmented masks.
    * "sem_seg": (h, w) int64 train ids, 255 where void. Group regions keep their class.

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
        min_instance_area: int = 0,
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
            min_instance_area: drop instances of fewer pixels than this after augmentation.
            table: the classes.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.instances = instances
        self.masks = masks
        self.sem_seg = sem_seg
        self.min_instance_area = min_instance_area
        self.table = table
        logger.info("augmentations in %s: %s", "training" if is_train else "test", augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            crop = T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
            augmentations.insert(1, crop)  # between resize and flip
        tasks = model_tasks(cfg)
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "instances": "bbox" in tasks,
            "masks": "segm" in tasks,
            "sem_seg": "sem_seg" in tasks,
            "min_instance_area": cfg.INPUT.MIN_INSTANCE_AREA,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        output = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        reader, index = open_shard(dataset_dict["shard"]), dataset_dict["index"]
        image = reader.image(index).permute(1, 2, 0).numpy()
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        augmented = T.AugInput(np.ascontiguousarray(image))
        transforms = self.augmentations(augmented)
        image = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        output["image"] = torch.from_numpy(image)
        if self.is_train:
            ids = _transform_ids(transforms, reader.instance_ids(index).numpy())
            if self.instances:
                output["instances"] = self._instances(ids)
            if self.sem_seg:
                output["sem_seg"] = torch.from_numpy(self.table.train_id_of[ids].astype(np.int64))
        return output

    def _instances(self, ids: np.ndarray) -> Instances:
        found = find_instances(ids, self.table)
        found = found.select(~found.crowd & (found.areas >= self.min_instance_area))
        target = Instances(ids.shape)
        target.gt_boxes = Boxes(torch.from_numpy(found.boxes.astype(np.float32)))
        target.gt_classes = torch.from_numpy(self.table.thing_id_of_train[found.classes])
        if self.masks:
            target.gt_masks = BitMasks(torch.from_numpy(instance_masks(ids, found)))
        return target


def _transform_ids(transforms: T.TransformList, ids: np.ndarray) -> np.ndarray:
    """Apply the geometric transforms of an image to its (H, W) int32 id map.

    A resize takes the nearest pixel by the same sampling grid as Pillow's resize of the image;
    Detectron2's own way for wide integers, torch's "nearest", is off by up to half a pixel.
    """
    for transform in transforms.transforms:
        if isinstance(transform, T.ResizeTransform):
            size = (transform.new_w, transform.new_h)
            resized = Image.fromarray(ids).resize(size, Image.Resampling.NEAREST)
            ids = np.asarray(resized)
        else:
            ids = transform.apply_segmentation(ids)
    return np.ascontiguousarray(ids)

"""Every config key that this package adds to Detectron2's, with its default.

The default of each key leaves stock Detectron2 behaviour as it is.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg as _get_detectron2_cfg

__all__ = ["add_d2_cityscapes_config", "get_cfg", "model_tasks"]


def get_cfg() -> CN:
    """Detectron2's default config with the keys of this package added. A new copy every call."""
    cfg = _get_detectron2_cfg()
    add_d2_cityscapes_config(cfg)
    return cfg


def add_d2_cityscapes_config(cfg: CN) -> None:
    """Add the keys of this package to ``cfg``, in place."""
    # w in (1 - w) * standard losses + w * GIoU loss, over ALL standard losses (RPN, class, box,
    # mask, semantic). Needs MODEL.ROI_HEADS.NAME "GIoUROIHeads" where it is above 0.
    cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.0

    # MODEL.ANCHOR_GENERATOR.NAME "KMeansAnchorGenerator" reads its sizes and ratios from SOURCE, a
    # JSON file written by tools/kmeans_anchors.py. "" uses SIZES and ASPECT_RATIOS as they stand.
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS = CN()
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = ""
    # How many sizes (one for each feature level) and height/width ratios the tool looks for.
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.NUM_SIZES = 5
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.NUM_RATIOS = 3

    # Modules that do not train: shell-style patterns over the names of model.named_modules(), each
    # freezing the whole module, e.g. "backbone.bottom_up" or "backbone.fpn_*".
    cfg.MODEL.FREEZE = CN()
    cfg.MODEL.FREEZE.MODULES = []
    # Keep normalisation layers of frozen modules in eval mode, so that their statistics stay too.
    cfg.MODEL.FREEZE.NORM_EVAL = True

    # "SGD" (Detectron2's own optimizer, with SOLVER.MOMENTUM and NESTEROV), "ADAM" or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"

    # For spinning disks and network mounts: an epoch visits one shard after another, in random
    # order, and shuffles inside each; every image still comes once. False: one shuffle over all.
    cfg.DATALOADER.SHARD_LOCAL = False
    # Part of the images that "RandomSubsetTrainingSampler" trains on. Detectron2 reads this key too
    # but gives it no default.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0

    # Instances of fewer pixels than this after augmentation are left out of training.
    cfg.INPUT.MIN_INSTANCE_AREA = 0
    # How images of shards are resized: "torch", or "pil" as Detectron2 does it, which is several
    # times slower; the two differ by up to 2 grey levels in about one value of a hundred.
    cfg.INPUT.RESIZE_BACKEND = "torch"

    # How many images of each test dataset are drawn, prediction beside truth, during evaluation.
    cfg.TEST.NUM_PICTURES = 0
    # Write predictions in the formats of the benchmark's test server while a model is evaluated, to
    # OUTPUT_DIR/submission/<dataset>/{semantic,instance,panoptic}.
    cfg.TEST.SUBMISSION = False

    # Iterations between two validations during training, which log the training losses on images
    # that are not trained on as val/...; one more follows the last iteration. 0: none.
    cfg.TEST.VAL_LOSS_PERIOD = 0
    # The dataset of these losses; "" for the first of DATASETS.TEST.
    cfg.TEST.VAL_LOSS_DATASET = ""
    # Entries of Detectron2's TEST.EXPECTED_RESULTS may also be [dataset, task, metric, value,
    # tolerance]; without a dataset they hold for each one in DATASETS.TEST.


def model_tasks(cfg: CN) -> tuple[str, ...]:
    """What the configured model predicts, in the names of the evaluators.

    Some of "bbox", "segm", "segm_cityscapes", "sem_seg" and "panoptic_seg"; targets and evaluators
    follow it. "segm" and "segm_cityscapes" are the same masks under two protocols.
    """
    masks = ("segm", "segm_cityscapes") if cfg.MODEL.MASK_ON else ()
    instance_tasks = ("bbox", *masks)
    panoptic = ("panoptic_seg",) if cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED else ()
    return {
        "SemanticSegmentor": ("sem_seg",),
        "SeamlessPanoptic": (*instance_tasks, "sem_seg", *panoptic),
    }.get(cfg.MODEL.META_ARCHITECTURE, instance_tasks)

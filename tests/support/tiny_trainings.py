"""A small training of each family of models, for every device.

on_cpu = train(setting("stage3", ["bfloat16", "FUSED"]), "cpu", folder)
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["FAMILIES", "OPTIONS", "Run", "config", "settings", "train"]

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"

_TINY = [
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "128",
    "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128",
    "DATASETS.TRAIN", "('cityscapes_shards_train',)", "DATASETS.TEST", "()",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0",
    "SOLVER.BASE_LR", "0.001", "SOLVER.CHECKPOINT_PERIOD", "1000", "SOLVER.AMP.ENABLED", "False",
    "DATALOADER.NUM_WORKERS", "0", "TEST.NUM_PICTURES", "0", "TEST.EXPECTED_RESULTS", "[]",
    "TEST.VAL_LOSS_PERIOD", "0", "MODEL.WAIT_FREE", "False", "DATALOADER.PREFETCH", "False",
    "MODEL.FROM_SCRATCH", "True",
    "SEED", "1",
]  # fmt: skip
_SMALL_RCNN = [
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.RPN.CONV_DIMS", "[16]", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.PRE_NMS_TOPK_TEST", "100",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "TEST.DETECTIONS_PER_IMAGE", "10",
    "MODEL.ANCHOR_GENERATOR.SIZES", "[[4],[8],[16],[32],[64]]",
]  # fmt: skip
_SMALL_DEEPLAB = [
    "MODEL.WEIGHTS", "", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "16",
    "TEST.VAL_LOSS_PERIOD", "2",  # which its schedule follows
    "INPUT.MIN_SIZE_TRAIN", "(32,)", "INPUT.MAX_SIZE_TRAIN", "64",
    "INPUT.MIN_SIZE_TEST", "32", "INPUT.MAX_SIZE_TEST", "64",
]  # fmt: skip
_SMALL_SEMANTIC = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "16",
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32",
]  # fmt: skip

# Name -> config file, and what makes it small.
FAMILIES: dict[str, tuple[str, list[str]]] = {
    "stage0": ("stage0.yaml", _SMALL_DEEPLAB),
    "stage1": ("stage1.yaml", _SMALL_RCNN),
    "stage2": ("stage2.yaml", _SMALL_RCNN),
    "stage3": ("stage3.yaml", _SMALL_RCNN),
    "stage4": ("stage4.yaml", [*_SMALL_RCNN, "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"]),
    "semantic": ("quick/semantic.yaml", _SMALL_SEMANTIC),
    "stock": (
        "baselines/mask_rcnn_R_50_FPN.yaml",
        [
            *_SMALL_RCNN,
            "MODEL.META_ARCHITECTURE",
            "GeneralizedRCNN",
            "MODEL.WEIGHTS",
            "",
            "INPUT.MIN_SIZE_TRAIN_SAMPLING",
            "choice",
        ],
    ),
}

_CLIP = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.01"]
# Name -> what switches it on; the precisions are options as well.
OPTIONS: dict[str, list[str]] = {
    "float32": [],
    "float16": ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"],
    "bfloat16": ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"],
    "ACCUMULATE_STEPS": ["SOLVER.ACCUMULATE_STEPS", "2"],
    "CHANNELS_LAST": ["SOLVER.CHANNELS_LAST", "True"],
    "FUSED": ["SOLVER.FUSED", "True"],
    "FOLD_FROZEN_NORM": ["MODEL.RESNETS.FOLD_FROZEN_NORM", "True"],
    "ACTIVATION_CHECKPOINTING": ["MODEL.BACKBONE.ACTIVATION_CHECKPOINTING", "True"],
    "EMA_DECAY": ["SOLVER.EMA_DECAY", "0.9"],
    "CLIP_NORM": [*_CLIP, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"],
    "CLIP_VALUE": [*_CLIP, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"],
    "MAX_SKIPPED_STEPS": ["SOLVER.MAX_SKIPPED_STEPS", "5"],
    "PREFETCH": ["DATALOADER.PREFETCH", "True", "DATALOADER.NUM_WORKERS", "1"],
    "VAL_LOSS": [
        "TEST.VAL_LOSS_PERIOD", "2", "TEST.VAL_LOSS_DATASET", "cityscapes_shards_val_select",
    ],
    "AUGMENTED": [
        "INPUT.COPY_PASTE.PROB", "1.0", "INPUT.COLOR_JITTER.ENABLED", "True",
        "INPUT.SMALL_INSTANCE_WEIGHT", "3.0",
    ],
    "WAIT_FREE": ["MODEL.WAIT_FREE", "True"],
    "EVALUATION": [
        "DATASETS.TEST", "('cityscapes_shards_val_select',)", "TEST.NUM_PICTURES", "2",
        "TEST.SUBMISSION", "True",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a training left.

    Attributes:
        scalars: name -> of each iteration; losses, accuracies and counts, no times.
        weights: of the model at the end, on the CPU.
        rows: of results.json.
        files: name -> what is in it, of the submissions and pictures.
    """

    scalars: dict[str, list[float]]
    weights: dict[str, torch.Tensor]
    rows: list[dict[str, Any]]
    files: dict[str, bytes]


def settings(family: str, options: Iterable[str] = ()) -> tuple[str, list[str]]:
    """The config file, and the overrides for `config`."""
    file, small = FAMILIES[family]
    return file, [*_TINY, *small, *(part for name in options for part in OPTIONS[name])]


def config(file: str, opts: list[str], device: str, folder: Path) -> Any:
    """From `settings`; for a training on that device that writes to a folder."""
    from d2_cityscapes.engine.trainer import checked_config

    return checked_config(
        argparse.Namespace(
            config_file=str(_CONFIGS / file),
            opts=[*opts, "MODEL.DEVICE", device, "OUTPUT_DIR", str(folder)],
            eval_only=False,
            resume=False,
            num_gpus=1,
        )
    )


def train(cfg: Any) -> Run:
    """To SOLVER.MAX_ITER, with the evaluation at the end."""
    from detectron2.utils.env import seed_all_rng

    from d2_cityscapes.engine.trainer import Trainer

    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    logging.getLogger("d2_cityscapes").setLevel(logging.ERROR)
    trainer.resume_or_load(resume=False)
    trainer.train()
    found = trainer.storage.histories()
    folder = Path(cfg.OUTPUT_DIR)
    results = folder / "results.json"
    return Run(
        scalars={
            name: [value for value, _ in history.values()]
            for name, history in found.items()
            if "time" not in name and "eta" not in name and "memory" not in name
        },
        weights={name: value.detach().cpu() for name, value in trainer.model.state_dict().items()},
        rows=json.loads(results.read_text())["results"] if results.exists() else [],
        files={
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.suffix in (".png", ".jpg", ".txt", ".zip")
        },
    )

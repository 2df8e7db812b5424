"""The start of a run: its config read and checked, its place, logs and seeds."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from d2_cityscapes.config_files import files_read
from d2_cityscapes.engine.checkpoints.resume import check_resume
from d2_cityscapes.engine.checks.config import check_config
from d2_cityscapes.engine.setup import check_weights_file, load_config
from d2_cityscapes.evaluation.results import ResultsError, read_results
from d2_cityscapes.files import check_folder, check_not_read
from d2_cityscapes.modeling.anchors.generator import resolve_anchors
from d2_cityscapes.modeling.universal.hub import resolve_hub
from d2_cityscapes.run_folder import (
    CONFIG,
    EVALUATION_CONFIG,
    RESULTS,
    evaluation_folder,
    written_by_training,
)
from d2_cityscapes.shipped import find_config
from d2_cityscapes.yaml_text import load_yaml

__all__ = ["checked_config", "setup"]

logger = logging.getLogger(__name__)


def checked_config(args: argparse.Namespace) -> CfgNode:
    """Read the config of a command line and check what it points at.

    Anchors of KMEANS.SOURCE are written into the config, and so into OUTPUT_DIR/config.yaml.
    """
    cfg = load_config(args.config_file, args.opts, train=not args.eval_only)
    cfg = resolve_anchors(cfg)
    check_weights_file(cfg)
    cfg = resolve_hub(cfg)
    check_config(cfg, train=not args.eval_only)
    return cfg


def setup(args: argparse.Namespace) -> CfgNode:
    """`checked_config`, and logs and seeds set up for it.

    Of an evaluation alone, OUTPUT_DIR becomes the folder that it writes to: never that of a
    training, see `evaluation_folder`.
    """
    if args.config_file:  # Detectron2 opens it as well, to log it
        args = argparse.Namespace(
            **{**vars(args), "config_file": str(find_config(args.config_file))}
        )
    cfg = checked_config(args)
    resume = getattr(args, "resume", None)  # None: of a caller that looks after its folder itself
    if args.eval_only:
        cfg = _in_evaluation_folder(cfg)
    elif resume:
        check_resume(cfg, processes=comm.get_world_size())
    elif resume is not None:
        _check_not_read(cfg, args.config_file)
    comm.synchronize()  # no rank writes before all have looked
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="d2_cityscapes")
    if args.eval_only and comm.is_main_process():
        _mark_evaluation(cfg)
    return cfg


def _check_not_read(cfg: CfgNode, config_file: str) -> None:
    """Refuse a new training in whose folder lies what it is made from.

    Such as a config whose ``_BASE_``, and so whose OUTPUT_DIR, is that of another training. A
    config.yaml that would be written again with the same values may stay.
    """
    written = Path(cfg.OUTPUT_DIR) / CONFIG
    outputs = written_by_training(cfg.OUTPUT_DIR)
    with contextlib.suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
        if load_yaml(written.read_text()) == load_yaml(cfg.dump()):
            outputs.remove(written)
    check_not_read(outputs, files_read(config_file, cfg))


def _in_evaluation_folder(cfg: CfgNode) -> CfgNode:
    """The config with OUTPUT_DIR where its evaluation may write; see `evaluation_folder`.

    Raises:
        D2CityscapesError: nothing can be written there.
    """
    folder = evaluation_folder(cfg.OUTPUT_DIR, cfg.DATASETS.TEST)
    if folder == Path(cfg.OUTPUT_DIR):
        return cfg
    check_folder(folder)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    return cfg


def _mark_evaluation(cfg: CfgNode) -> None:
    """Rename the config.yaml that Detectron2 has just written, and say what is replaced.

    Args:
        cfg: from `_in_evaluation_folder`.
    """
    folder = Path(cfg.OUTPUT_DIR)
    logger.info("evaluation in %s, whose config is %s", folder, EVALUATION_CONFIG)
    with contextlib.suppress(ResultsError):
        before = {row.dataset for row in read_results(folder / RESULTS)[0]}
        if before - {*cfg.DATASETS.TEST}:
            logger.warning(
                "%s of %s is replaced; give another OUTPUT_DIR to keep it",
                folder / RESULTS,
                ", ".join(sorted(before)),
            )
    os.replace(folder / CONFIG, folder / EVALUATION_CONFIG)

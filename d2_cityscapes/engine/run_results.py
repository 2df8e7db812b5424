"""results.json of a run: what its evaluations have scored, with TEST.AUG and without."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from d2_cityscapes.data.register import has_truth
from d2_cityscapes.engine.computing import computed_on
from d2_cityscapes.evaluation.evaluators import ShardEvaluators
from d2_cityscapes.evaluation.results import AUGMENTED, add_rows, write_results
from d2_cityscapes.run_folder import AUGMENTED_FOLDER, RESULTS

__all__ = ["add_augmented", "both", "of_augmented", "write_run_results"]

logger = logging.getLogger(__name__)


def write_run_results(
    cfg: CfgNode,
    evaluators: Sequence[ShardEvaluators],
    *,
    seconds: float,
    weights: str | Path | None,
) -> None:
    """Write OUTPUT_DIR/results.json of an evaluation on DATASETS.TEST, on the main process.

    Args:
        cfg: of the run.
        evaluators: that have scored.
        seconds: what it took.
        weights: file that the model's weights came from, for its checksum.
    """
    if not comm.is_main_process():
        return
    path = Path(cfg.OUTPUT_DIR) / RESULTS
    write_results(
        path,
        [row for evaluator in evaluators for row in evaluator.rows],
        seconds=seconds,
        config=cfg.dump(),
        weights=weights,
        unscored={
            name: len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TEST if not has_truth(name)
        },
        computed_on=computed_on(cfg.MODEL.DEVICE),
    )
    logger.info("results written to %s", path)


def of_augmented(cfg: CfgNode) -> CfgNode:
    """The config whose OUTPUT_DIR takes pictures and submissions of an evaluation with TEST.AUG."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / AUGMENTED_FOLDER)
    cfg.freeze()
    return cfg


def add_augmented(
    cfg: CfgNode, evaluators: Sequence[ShardEvaluators], results: Any, *, seconds: float
) -> Any:
    """Add what was scored with TEST.AUG to OUTPUT_DIR/results.json, its tasks with "_TTA" behind.

    Args:
        cfg: of the run.
        evaluators: that have scored.
        results: what Detectron2's ``test`` returned.
        seconds: what it took.

    Returns:
        The results, their tasks so named; on other ranks than the first as they are.
    """
    if not comm.is_main_process():
        return results
    rows = [row for evaluator in evaluators for row in evaluator.rows]
    path = Path(cfg.OUTPUT_DIR) / RESULTS
    add_rows(path, [replace(row, task=row.task + AUGMENTED) for row in rows], seconds=seconds)
    if len(cfg.DATASETS.TEST) == 1:
        return _renamed(results)
    return {dataset: _renamed(own) for dataset, own in results.items()}


def both(plain: Any, augmented: Any) -> Any:
    """The results of two evaluations, by task or by dataset and task, as one."""
    if not (plain and augmented) or not comm.is_main_process():
        return plain
    return {key: {**plain.get(key, {}), **augmented.get(key, {})} for key in {**plain, **augmented}}


def _renamed(results: Mapping[str, Any]) -> dict[str, Any]:
    return {task + AUGMENTED: values for task, values in results.items()}

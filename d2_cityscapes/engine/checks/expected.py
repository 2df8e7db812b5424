"""TEST.EXPECTED_RESULTS against what the evaluators of a config will give."""

from __future__ import annotations

from detectron2.config import CfgNode

from d2_cityscapes.config import model_tasks
from d2_cityscapes.data.register import has_truth
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.errors import nearest
from d2_cityscapes.evaluation.evaluators import known_metrics
from d2_cityscapes.evaluation.expected import parse_expected
from d2_cityscapes.evaluation.results import AUGMENTED

__all__ = ["check_expected_results"]


def check_expected_results(cfg: CfgNode) -> None:
    """Refuse entries of TEST.EXPECTED_RESULTS that no evaluation of this config can meet.

    Raises:
        D2CityscapesError: an entry of another form, or of a task, dataset or metric that is not
            scored.
    """
    scored = cfg.DATASETS.TEST
    for entry in parse_expected(cfg.TEST.EXPECTED_RESULTS):
        refused = f"TEST.EXPECTED_RESULTS: {entry}: "
        tasks = model_tasks(cfg)
        if cfg.TEST.AUG.ENABLED:
            tasks = (*tasks, *(task + AUGMENTED for task in tasks))
        if entry.task not in tasks:
            raise ConfigError(f"{refused}the model predicts {', '.join(tasks)}")
        if entry.dataset not in (None, *scored):
            raise ConfigError(f"{refused}DATASETS.TEST is {', '.join(scored)}")
        if entry.dataset and not has_truth(entry.dataset):
            raise ConfigError(f"{refused}{entry.dataset} has no truth to score against")
        for dataset in [entry.dataset] if entry.dataset else filter(has_truth, scored):
            metrics = known_metrics(dataset, entry.task.removesuffix(AUGMENTED))
            if entry.metric not in metrics:
                means = ", ".join(metric for metric in metrics if "-" not in metric)
                raise ConfigError(
                    f"{refused}{entry.task} has no {entry.metric} on {dataset}"
                    f"{nearest(entry.metric, metrics) or f'; it has {means}'}"
                )

"""The evaluators, chosen by what the model predicts and the dataset knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from d2_cityscapes.config import model_tasks
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.instances.evaluators import (
    CityscapesInstanceEvaluator,
    InstanceEvaluator,
)
from d2_cityscapes.evaluation.panoptic.evaluator import PanopticEvaluator
from d2_cityscapes.evaluation.results import ResultRow
from d2_cityscapes.evaluation.semantic.evaluator import SemSegEvaluator
from d2_cityscapes.evaluation.shard_evaluator import ShardEvaluator, output_on_cpu
from d2_cityscapes.evaluation.submission.instances import InstanceSubmissionWriter
from d2_cityscapes.evaluation.submission.writer import (
    PanopticSubmissionWriter,
    SemSegSubmissionWriter,
)

__all__ = [
    "EVALUATORS",
    "SUBMISSION_WRITERS",
    "CityscapesInstanceEvaluator",
    "InstanceEvaluator",
    "PanopticEvaluator",
    "SemSegEvaluator",
    "ShardEvaluators",
    "build_evaluator",
    "known_metrics",
]


class ShardEvaluators(DatasetEvaluators):
    """Several evaluators as one: what a GPU predicted is copied from it once for all of them."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__(list(evaluators))
        self.evaluators = tuple(evaluators)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        super().process(inputs, [output_on_cpu(output) for output in outputs])

    @property
    def rows(self) -> list[ResultRow]:
        """The rows of the last ``evaluate``, on the main process, for results.json."""
        return [row for evaluator in self.evaluators for row in getattr(evaluator, "rows", [])]


# An evaluator that scores several tasks at once stands at each of them.
EVALUATORS: dict[str, Callable[[str, Sequence[str]], ShardEvaluator]] = {
    "bbox": InstanceEvaluator,
    "segm": InstanceEvaluator,
    "segm_cityscapes": CityscapesInstanceEvaluator,
    "sem_seg": SemSegEvaluator,
    "panoptic_seg": PanopticEvaluator,
}


# Task -> folder of its submission, and what writes it.
SUBMISSION_WRITERS: dict[str, tuple[str, Callable[[str, Path], DatasetEvaluator]]] = {
    "segm": ("instance", InstanceSubmissionWriter),
    "sem_seg": ("semantic", SemSegSubmissionWriter),
    "panoptic_seg": ("panoptic", PanopticSubmissionWriter),
}


def build_evaluator(
    cfg: CfgNode,
    dataset_name: str,
    output_dir: str | Path | None = None,
    *,
    beside: Sequence[DatasetEvaluator] = (),
) -> ShardEvaluators:
    """The evaluators of all tasks that the model predicts and the dataset has the truth of.

    Where cfg.TEST.SUBMISSION asks for it, submissions go to <output_dir>/submission/<dataset_name>.

    Args:
        cfg: config of the model.
        dataset_name: a dataset that `register_cityscapes_shards` registered.
        output_dir: None for cfg.OUTPUT_DIR.
        beside: what else looks at every prediction, such as the trainer's `PictureWriter`.

    Raises:
        D2CityscapesError: another dataset, or one without any of the model's tasks.
    """
    tasks, output = model_tasks(cfg), Path(output_dir or cfg.OUTPUT_DIR)
    known = getattr(MetadataCatalog.get(dataset_name), "tasks", None)
    if known is None:
        raise D2CityscapesError(
            f"DATASETS.TEST {dataset_name}: not a dataset of shards; register it with "
            "d2_cityscapes.data.register_cityscapes_shards"
        )
    chosen: dict[Callable[[str, Sequence[str]], ShardEvaluator], list[str]] = {}
    for task in tasks:
        if task in known:
            chosen.setdefault(EVALUATORS[task], []).append(task)
    evaluators: list[DatasetEvaluator] = [make(dataset_name, t) for make, t in chosen.items()]
    if cfg.TEST.SUBMISSION:
        folder = output / "submission" / dataset_name
        evaluators += [
            make(dataset_name, folder / kind)
            for task, (kind, make) in SUBMISSION_WRITERS.items()
            if task in tasks
        ]
    if not known and not evaluators:
        raise D2CityscapesError(
            f"DATASETS.TEST {dataset_name}: has no truth to score against; TEST.SUBMISSION True "
            f"writes submissions for it (the model predicts {', '.join(tasks)})"
        )
    if not evaluators:
        raise D2CityscapesError(
            f"DATASETS.TEST {dataset_name}: has the truth of {', '.join(known)}, but the model "
            f"predicts {', '.join(tasks)}"
        )
    return ShardEvaluators([*evaluators, *beside])


def known_metrics(dataset_name: str, task: str) -> list[str]:
    """The metrics that an evaluation on a dataset of shards gives for a task."""
    rows = EVALUATORS[task](dataset_name, [task]).rows_of_nothing()
    return [row.metric for row in rows]

"""The staged recipe: stages in sequence, each in a process of its own, weights handed on."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from d2_cityscapes.cli import run
from d2_cityscapes.engine.setup import check_datasets, check_weights_file, load_config
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.expected import ExpectationError, check_expected
from d2_cityscapes.evaluation.results import ResultRow, read_results
from d2_cityscapes.modeling.anchors import fit_anchors

__all__ = ["STAGES", "Stage", "StageError", "plan_stages", "run_stages", "summary"]

logger = logging.getLogger(__name__)

STAGES = (0, 1, 2, 3)
_ANCHORS_KEY = "MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE"
# The numbers of a stage's line in the summary.
_HEADLINES = (
    ("panoptic_seg", "PQ"),
    ("panoptic_seg", "PQ_dagger"),
    ("segm", "AP"),
    ("segm", "AP50"),
    ("segm_cityscapes", "AP"),
    ("bbox", "AP"),
    ("bbox", "AP50"),
    ("sem_seg", "mIoU"),
)


class StageError(D2CityscapesError):
    """A stage that cannot start, or that failed."""


@dataclass(frozen=True)
class Stage:
    """One training of the recipe.

    Attributes:
        number: 0..3.
        config_file: its YAML file.
        opts: KEY VALUE overrides: the caller's, then OUTPUT_DIR, MODEL.WEIGHTS and the anchors.
        cfg: the two together.
    """

    number: int
    config_file: Path
    opts: tuple[str, ...]
    cfg: CfgNode

    @property
    def output_dir(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def final_weights(self) -> Path:
        return _final_weights(self.output_dir)

    @property
    def results(self) -> Path:
        return self.output_dir / "results.json"

    @property
    def is_done(self) -> bool:
        return self.final_weights.is_file() and self.results.is_file()


def plan_stages(
    output_dir: str | Path,
    *,
    config_dir: str | Path,
    stages: Sequence[int] = STAGES,
    opts: Sequence[str] = (),
) -> list[Stage]:
    """Check every stage before the first one starts.

    A stage begins with the final weights of the stage before it. The first one of ``stages`` takes
    them from an earlier run in the same folder, or MODEL.WEIGHTS from ``opts``.

    Args:
        output_dir: receives stage0/, stage1/, ...
        config_dir: folder with stage0.yaml, stage1.yaml, ...
        stages: numbers, in any order.
        opts: KEY VALUE overrides for every stage.

    Raises:
        D2CityscapesError: unknown stage or key, missing dataset or weights.
    """
    output_dir, config_dir = Path(output_dir), Path(config_dir)
    plan: list[Stage] = []
    for number in sorted(set(stages)):
        if number not in STAGES:
            raise StageError(f"stage {number}: there are {', '.join(map(str, STAGES))}")
        own = ["OUTPUT_DIR", str(output_dir / f"stage{number}")]
        before = _final_weights(output_dir / f"stage{number - 1}")
        if before.is_file() or (plan and plan[-1].number == number - 1):
            own += ["MODEL.WEIGHTS", str(before)]
        config_file = config_dir / f"stage{number}.yaml"
        cfg = load_config(config_file, [*opts, *own])
        if _fits_anchors(cfg):
            own += [_ANCHORS_KEY, str(output_dir / "anchors.json")]
            cfg = load_config(config_file, [*opts, *own])
        if cfg.MODEL.FREEZE.MODULES and not cfg.MODEL.WEIGHTS:
            raise StageError(
                f"stage {number} freezes {', '.join(cfg.MODEL.FREEZE.MODULES)}, which nothing "
                f"trained: run stage {number - 1} first, or give MODEL.WEIGHTS"
            )
        if not plan and Path(cfg.MODEL.WEIGHTS) != before:
            check_weights_file(cfg)
        check_datasets(cfg, train=True)
        plan.append(Stage(number, config_file, (*opts, *own), cfg))
    return plan


def run_stages(plan: Sequence[Stage]) -> None:
    """Run stages one after the other; finished ones are skipped, an interrupted one resumes.

    Each stage runs in a fresh process, so that no logger, hook or cached model passes from one to
    the next; what passes is the checkpoint. Anchors are fitted once, before the first stage that
    wants them.

    Raises:
        StageError: a stage failed, or its results are not what TEST.EXPECTED_RESULTS asks for.
    """
    for stage in plan:
        if stage.is_done:
            print(f"stage {stage.number}: already done, in {stage.output_dir}", flush=True)
            _check_expected_results(stage)
            continue
        source = stage.cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE
        if source and source in stage.opts and not Path(source).is_file():
            fit_anchors(stage.cfg, source)
        print(f"stage {stage.number}: {stage.config_file} -> {stage.output_dir}", flush=True)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_train_in_process, args=(stage.config_file, stage.opts))
        process.start()
        process.join()
        if stage.is_done:
            _check_expected_results(stage)
        if process.exitcode != 0 or not stage.is_done:
            raise StageError(
                f"stage {stage.number} failed with exit code {process.exitcode}, see "
                f"{stage.output_dir / 'log.txt'}; the same command resumes it"
            )


def summary(plan: Sequence[Stage]) -> list[str]:
    """One line a stage: its main numbers with protocol, dataset and image count."""
    return [f"stage {stage.number}: {_headline(read_results(stage.results)[0])}" for stage in plan]


def _check_expected_results(stage: Stage) -> None:
    try:
        check_expected(stage.cfg.TEST.EXPECTED_RESULTS, read_results(stage.results)[0])
    except ExpectationError as error:
        raise StageError(
            f"stage {stage.number}: {error}; delete {stage.output_dir} to train it again",
            details=error.details,
        ) from error


def _headline(rows: Sequence[ResultRow]) -> str:
    found = {(row.task, row.metric): row for row in rows}
    by_protocol: dict[str, list[str]] = {}
    for row in (found[key] for key in _HEADLINES if key in found):
        value = "-" if row.value is None else f"{row.value:.1f}"
        by_protocol.setdefault(row.protocol, []).append(f"{row.task} {row.metric} {value}")
    numbers = [f"{', '.join(n)} ({protocol} protocol)" for protocol, n in by_protocol.items()]
    scope = sorted({f"{row.dataset}, {row.images} images" for row in rows})
    return f"{', '.join(numbers)}; {'; '.join(scope)}"


def _final_weights(output_dir: Path) -> Path:
    return output_dir / "model_final.pth"


def _fits_anchors(cfg: CfgNode) -> bool:
    generator = cfg.MODEL.ANCHOR_GENERATOR
    return generator.NAME == "KMeansAnchorGenerator" and not generator.KMEANS.SOURCE


def _train_in_process(config_file: Path, opts: Sequence[str]) -> None:
    from d2_cityscapes.engine.trainer import setup, train

    threading.Thread(target=_leave_with_parent, daemon=True).start()
    args = argparse.Namespace(config_file=str(config_file), opts=list(opts), eval_only=False)

    def main() -> None:
        train(setup(args), resume=True)

    run(main)


def _leave_with_parent() -> None:
    """End this process when its parent is killed, so that a rerun is the only one that writes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""The staged recipe: stages in sequence, each in a process of its own, weights handed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from d2_cityscapes.config_files import config_files
from d2_cityscapes.engine.checkpoints.averaging import final_weights
from d2_cityscapes.engine.checkpoints.fetching import fetch_weights
from d2_cityscapes.engine.checks.config import check_config
from d2_cityscapes.engine.setup import check_start, check_weights_file, load_config
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.expected import ExpectationError, check_expected
from d2_cityscapes.evaluation.results import ResultRow, ResultsError, percent_text, read_results
from d2_cityscapes.files import check_not_read, file_sha256, lock_folder, remove_temporaries
from d2_cityscapes.modeling.anchors.generator import fit_anchors
from d2_cityscapes.modeling.backbones.weights import begins_with_timm
from d2_cityscapes.run_folder import (
    FINAL,
    FINAL_AVERAGE,
    LAST_CHECKPOINT,
    RESULTS,
    written_by_training,
)
from d2_cityscapes.stages.changes import (
    check_first_weights,
    check_settings,
    write_first_weights,
)
from d2_cityscapes.stages.handover import Handover, find_handover
from d2_cityscapes.stages.process import train_in_fresh_process
from d2_cityscapes.stages.progress import StageProgress

__all__ = ["STAGES", "Stage", "StageError", "plan_stages", "run_stages", "stage_results", "summary"]

STAGES = (0, 1, 2, 3, 4)  # 4, the panoptic one, is not in the paper
ANCHORS_KEY = "MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE"
# What a run writes beside its stages.
_OF_ALL_STAGES = (
    "anchors.json",
    "anchors.png",
    "loss_curves.png",
    "report.html",
    "results.json",
    "table5.json",
    "table5.md",
)
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
        handover: how MODEL.WEIGHTS is made of the final weights of the stage before; None where it
            is these, or others.
        anchors: the file of its anchors, if the stages share them.
        fits_anchors: it is the first of them, so that the anchors are fitted to its training set.
    """

    number: int
    config_file: Path
    opts: tuple[str, ...]
    cfg: CfgNode
    handover: Handover | None = None
    anchors: Path | None = None
    fits_anchors: bool = False

    @property
    def output_dir(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def final_weights(self) -> Path:
        """Those that it is evaluated with, and the next stage begins with."""
        return final_weights(self.cfg)

    @property
    def results(self) -> Path:
        return self.output_dir / RESULTS

    @property
    def has_begun(self) -> bool:
        """It has left weights: to resume from, or the final ones."""
        return (self.output_dir / LAST_CHECKPOINT).is_file() or bool(_trained(self.output_dir))

    @property
    def is_done(self) -> bool:
        """The results are those of the final weights, by their checksum."""
        return _is_scored(self.output_dir)


def plan_stages(
    output_dir: str | Path,
    *,
    config_dir: str | Path,
    stages: Sequence[int] = STAGES[:4],
    opts: Sequence[str] = (),
    adapt: Callable[[CfgNode], Sequence[str]] = lambda _: (),
) -> list[Stage]:
    """Check every stage before the first one starts.

    A stage begins with the final weights of the stage before it. The first one of ``stages`` takes
    them from an earlier run in the same folder, or MODEL.WEIGHTS from ``opts``.

    Args:
        output_dir: receives stage0/, stage1/, ...
        config_dir: folder with stage0.yaml, stage1.yaml, ...
        stages: numbers, in any order.
        opts: KEY VALUE overrides for every stage.
        adapt: more of them for one stage, by the config that it would have without.

    Raises:
        D2CityscapesError: unknown stage or key, missing dataset or weights, a stage that began with
            other settings, or a file that is read and would be overwritten.
    """
    output_dir, config_dir = Path(output_dir), Path(config_dir)
    plan: list[Stage] = []
    for number in sorted(set(stages)):
        if number not in STAGES:
            raise StageError(f"stage {number}: there are {', '.join(map(str, STAGES))}")
        stage = _plan_stage(number, plan, output_dir, config_dir, tuple(opts), adapt)
        cfg = stage.cfg
        if cfg.MODEL.FREEZE.MODULES and not (cfg.MODEL.WEIGHTS or begins_with_timm(cfg)):
            raise StageError(
                f"stage {number} freezes {', '.join(cfg.MODEL.FREEZE.MODULES)}, which nothing "
                f"trained: run stage {number - 1} first, or give MODEL.WEIGHTS"
            )
        if not stage.has_begun:
            check_start(cfg)
        if "MODEL.WEIGHTS" not in stage.opts[len(opts) :]:
            check_weights_file(cfg)
        check_config(cfg, train=True)
        if stage.has_begun:
            check_settings(stage.output_dir, cfg)
        plan.append(stage)
    _check_files(output_dir, plan, len(opts))
    return plan


def run_stages(plan: Sequence[Stage]) -> None:
    """Run stages one after the other; finished ones are skipped, an interrupted one resumes.

    Each stage runs in a fresh process, so that no logger, hook or cached model passes from one to
    the next; what passes is the checkpoint. Anchors are fitted once, before the first stage that
    wants them. A line at the beginning and at the end of each stage says how far the run is.

    Raises:
        D2CityscapesError: a stage failed, began with other weights than it would now, or its
            results are not what TEST.EXPECTED_RESULTS asks for.
    """
    progress = StageProgress([stage.cfg.SOLVER.MAX_ITER for stage in plan])
    for index, stage in enumerate(plan):
        with lock_folder(stage.output_dir):
            _run_stage(stage, index, progress)


def stage_results(plan: Sequence[Stage]) -> dict[str, list[ResultRow]]:
    """ "stage1" -> its results, for the stages of the plan and finished ones before its last."""
    last = plan[-1]
    folders = [last.output_dir.with_name(f"stage{number}") for number in range(last.number + 1)]
    return {f.name: read_results(f / RESULTS)[0] for f in folders if _is_scored(f)}


def summary(plan: Sequence[Stage]) -> list[str]:
    """One line a stage: its main numbers with protocol, dataset and image count."""
    return [f"stage {stage.number}: {_scores(stage)}" for stage in plan]


def _plan_stage(
    number: int,
    plan: Sequence[Stage],
    output_dir: Path,
    config_dir: Path,
    opts: tuple[str, ...],
    adapt: Callable[[CfgNode], Sequence[str]],
) -> Stage:
    own = ["OUTPUT_DIR", str(output_dir / f"stage{number}")]
    config_file = config_dir / f"stage{number}.yaml"
    cfg = load_config(config_file, [*opts, *own])
    own += adapt(cfg)
    file_before = config_dir / f"stage{number - 1}.yaml"
    before = load_config(file_before, opts, train=False) if file_before.is_file() else None

    found = _trained(output_dir / f"stage{number - 1}")
    if plan and plan[-1].number == number - 1:
        found = [plan[-1].final_weights]
    handover = find_handover(before, cfg, found[0]) if found and before is not None else None
    if found:
        own += ["MODEL.WEIGHTS", str(handover.output if handover else found[0])]

    anchors = output_dir / "anchors.json" if _shares_anchors(cfg) else None
    if anchors:
        own += [ANCHORS_KEY, str(anchors)]
    first = before is None or not _shares_anchors(before)
    cfg = load_config(config_file, [*opts, *own])
    fits = bool(anchors and first)
    return Stage(number, config_file, (*opts, *own), cfg, handover, anchors, fits)


def _check_files(output_dir: Path, plan: Sequence[Stage], given: int) -> None:
    """Refuse to overwrite what the stages read and did not make themselves.

    Args:
        given: number of the caller's among the overrides of a stage.
    """
    outputs = [output_dir / name for name in _OF_ALL_STAGES]
    inputs: list[str | Path] = []
    for stage in plan:
        outputs += written_by_training(stage.output_dir)
        inputs += config_files(stage.config_file)
        if "MODEL.WEIGHTS" not in stage.opts[given:]:
            inputs.append(stage.cfg.MODEL.WEIGHTS)
        if stage.anchors is None:
            inputs.append(stage.cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE)
    check_not_read(outputs, inputs)


def _run_stage(stage: Stage, index: int, progress: StageProgress) -> None:
    _prepare(stage)
    if stage.is_done:
        print(f"stage {stage.number}: already done, in {stage.output_dir}", flush=True)
        _check_expected_results(stage)
        return
    otherwise = "timm's weights" if begins_with_timm(stage.cfg) else "random weights"
    begins = f"from {stage.cfg.MODEL.WEIGHTS or otherwise}"
    print(
        f"\nstage {stage.number}: {stage.config_file} -> {stage.output_dir}, {begins}",
        f"stage {stage.number} is {progress.begin(index)}\n",
        sep="\n",
        flush=True,
    )
    try:
        exit_code = train_in_fresh_process(stage.config_file, stage.opts)
    except D2CityscapesError as error:
        text = f"stage {stage.number}: {error}"
        if stage.has_begun:
            text += "; the same command resumes it"
        raise StageError(text, details=error.details) from error
    if stage.is_done:
        _check_expected_results(stage)
        print(
            f"\nstage {stage.number} is done in {progress.end(index)}: {_scores(stage)}", flush=True
        )
    if exit_code != 0 or not stage.is_done:
        how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        raise StageError(
            f"stage {stage.number} failed with {how}, see {stage.output_dir / 'log.txt'}; the same "
            "command resumes it"
        )


def _prepare(stage: Stage) -> None:
    """Make what a stage begins with. Until it has begun, all of it is made again.

    Settings may have changed since it was made, or the stage before been trained again.
    """
    fresh, weights = not stage.has_begun, stage.cfg.MODEL.WEIGHTS
    remove_temporaries(stage.output_dir, ["*"])
    if fresh:
        fetch_weights(weights)  # before a process is started that needs them
    if stage.handover and (fresh or not Path(weights).is_file()):
        print(*stage.handover.make(), sep="\n", flush=True)
    if stage.anchors and (not stage.anchors.is_file() or (fresh and stage.fits_anchors)):
        fit_anchors(stage.cfg, stage.anchors)
    if fresh:
        write_first_weights(stage.output_dir, weights)
    else:
        check_first_weights(stage.output_dir, weights)


def _check_expected_results(stage: Stage) -> None:
    try:
        check_expected(stage.cfg.TEST.EXPECTED_RESULTS, read_results(stage.results)[0])
    except ExpectationError as error:
        raise StageError(
            f"stage {stage.number}: {error}; delete {stage.output_dir} to train it again",
            details=error.details,
        ) from error


def _scores(stage: Stage) -> str:
    rows, _ = read_results(stage.results)
    found = {(row.task, row.metric): row for row in rows}
    by_protocol: dict[str, list[str]] = {}
    for row in (found[key] for key in _HEADLINES if key in found):
        value = percent_text(row.value, 1)
        by_protocol.setdefault(row.protocol, []).append(f"{row.task} {row.metric} {value}")
    numbers = [f"{', '.join(n)} ({protocol} protocol)" for protocol, n in by_protocol.items()]
    scope = sorted({f"{row.dataset}, {row.images} images" for row in rows})
    return f"{', '.join(numbers)}; {'; '.join(scope)}"


def _trained(folder: Path) -> list[Path]:
    """The final weights in a folder; the average, which is what was evaluated, before the last."""
    return [path for path in (folder / FINAL_AVERAGE, folder / FINAL) if path.is_file()]


def _is_scored(folder: Path) -> bool:
    try:
        _, about = read_results(folder / RESULTS)
    except ResultsError:
        return False
    return about.get("weights_sha256") in [file_sha256(path) for path in _trained(folder)]


def _shares_anchors(cfg: CfgNode) -> bool:
    generator = cfg.MODEL.ANCHOR_GENERATOR
    return generator.NAME == "KMeansAnchorGenerator" and not generator.KMEANS.SOURCE

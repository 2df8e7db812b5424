"""K-fold cross-validation of a recipe: all stages once a fold, tested on what they never saw."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from d2_cityscapes.data.folds import deal, fold_name, others_name
from d2_cityscapes.engine.setup import load_config, validation_dataset
from d2_cityscapes.evaluation.results import ResultRow
from d2_cityscapes.files import write_json
from d2_cityscapes.run_folder import FOLDS
from d2_cityscapes.stages.run import ANCHORS_KEY, Stage, StageError, plan_stages, stage_results

__all__ = ["Folds", "check_kind", "plan_folds"]

# Data sets of train and val: all of it, a partition, or the halves of val.
_SPLIT = re.compile(r"(.+_shards_)(train|val)(_\d+|_select|_report)?")
_EXPECTED = "TEST.EXPECTED_RESULTS"


@dataclass(frozen=True)
class Folds:
    """The folds of a run.

    Attributes:
        dataset: the name of what was dealt.
        partitions: for each fold the names of the files that it is tested on.
        images: for each fold the number of pictures in them.
        identity: SHA-256 of the names of all pictures, fold by fold.
        plans: for each fold the stages, in a folder of its own.
    """

    dataset: str
    partitions: tuple[tuple[str, ...], ...]
    images: tuple[int, ...]
    identity: str
    plans: tuple[tuple[Stage, ...], ...]

    def begin(self, output_dir: Path) -> None:
        """Note down how the partitions were dealt, unless that is there."""
        if not (output_dir / FOLDS).is_file():
            write_json(output_dir / FOLDS, self.record())

    def record(self) -> dict[str, Any]:
        """For folds.json."""
        return {
            "folds": len(self.plans),
            "dataset": self.dataset,
            "partitions": [list(names) for names in self.partitions],
            "images": list(self.images),
            "image_names_sha256": self.identity,
        }

    def results(self) -> list[dict[str, list[ResultRow]]]:
        """For each fold: "stage1" -> its results, those on the fold under the name of `dataset`."""
        found = []
        for fold, plan in enumerate(self.plans, 1):
            name = fold_name(self.dataset, fold, len(self.plans))
            found.append(
                {
                    stage: [
                        replace(row, dataset=self.dataset) if row.dataset == name else row
                        for row in rows
                    ]
                    for stage, rows in stage_results(plan).items()
                }
            )
        return found


def check_kind(output_dir: Path, folds: int | None) -> None:
    """Refuse to mix a run of folds and one without, or of another number, in a folder.

    Raises:
        StageError: the folder holds the other kind.
    """
    before = _read_record(output_dir)
    if before and before["folds"] != folds:
        now = f"{folds} now" if folds else "none now"
        raise StageError(
            f"{output_dir} was begun with --folds {before['folds']}, {now}: give the same again, "
            "or take another --output-dir"
        )
    stages = sorted(path.name for path in output_dir.glob("stage[0-9]*") if path.is_dir())
    if folds and stages:
        raise StageError(
            f"{output_dir} holds {stages[0]} of a run without --folds: take another --output-dir"
        )


def plan_folds(
    output_dir: Path,
    folds: int,
    *,
    config_dir: str | Path,
    stages: Sequence[int],
    opts: Sequence[str] = (),
) -> Folds:
    """Check every stage of every fold before the first one starts.

    What is dealt is the split train of the folder that the last stage's data are in. In each stage
    train and val of that folder, and parts of them, become the other folds in DATASETS.TRAIN, and
    the fold in DATASETS.TEST. Validation losses, by which a learning rate may follow, are of val,
    where they would be of train or of the fold. Other data sets stay as they are.
    TEST.EXPECTED_RESULTS of the configs, which are of other data, are left out; those in ``opts``
    hold for each fold.

    Args:
        output_dir: receives fold1/, fold2/, ..., each as `plan_stages` says.
        folds: their number, K.
        config_dir, stages, opts: as there.

    Raises:
        D2CityscapesError: as there; fewer than 2 folds, or more than partitions; other folds than
            the folder was begun with; anchors from a file; a picture of a fold in what a stage
            learns from.
    """
    check_kind(output_dir, folds)
    last = load_config(Path(config_dir) / f"stage{max(stages)}.yaml", opts, train=False)
    dataset = _dataset(last)
    dealt = deal(dataset, folds)
    names = [[d["image_id"] for own in fold.values() for d in own] for fold in dealt]
    pictures = functools.cache(_pictures)  # the stages of a fold name the same
    plans = []
    for fold in range(1, folds + 1):
        adapt = partial(_adapt, dataset, fold, folds, _EXPECTED in opts[::2])
        plan = plan_stages(
            output_dir / f"fold{fold}",
            config_dir=config_dir,
            stages=stages,
            opts=opts,
            adapt=adapt,
        )
        for stage in plan:
            _check_unseen(stage, fold, pictures(fold_name(dataset, fold, folds)), pictures)
        plans.append(tuple(plan))
    found = Folds(
        dataset,
        tuple(tuple(Path(shard).name for shard in fold) for fold in dealt),
        tuple(len(own) for own in names),
        hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        tuple(plans),
    )
    before = _read_record(output_dir)
    changed = [key for key, value in found.record().items() if before.get(key, value) != value]
    if changed:
        raise StageError(
            f"{output_dir} was begun with other folds ({', '.join(changed)} in {FOLDS}), as of "
            "shards that were packed again: take another --output-dir"
        )
    return found


def _dataset(cfg: CfgNode) -> str:
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if match := _SPLIT.fullmatch(name):
            return f"{match[1]}train"
    raise StageError(
        f"--folds: the last stage has neither train nor val of a folder of shards (DATASETS.TRAIN "
        f"{', '.join(cfg.DATASETS.TRAIN) or '()'}, TEST {', '.join(cfg.DATASETS.TEST) or '()'})"
    )


def _adapt(dataset: str, fold: int, folds: int, expects: bool, cfg: CfgNode) -> list[str]:
    """Overrides of one stage of a fold, see `plan_folds`."""
    if source := cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE:
        raise StageError(
            f"--folds: {ANCHORS_KEY} {source} may know the pictures that a fold is tested on; "
            "leave it empty, so that each fold fits its own"
        )
    family = dataset.removesuffix("train")
    opts: list[str] = []
    for key, instead in (
        ("TRAIN", others_name(dataset, fold, folds)),
        ("TEST", fold_name(dataset, fold, folds)),
    ):
        names = [instead if _is_of(family, name) else name for name in cfg.DATASETS[key]]
        opts += [f"DATASETS.{key}", repr(tuple(dict.fromkeys(names)))]
    validation = next(iter(filter(None, (cfg.TEST.VAL_LOSS_DATASET, *cfg.DATASETS.TEST))), "")
    if cfg.TEST.VAL_LOSS_PERIOD > 0 and _is_of(family, validation):
        in_val = validation.startswith(f"{family}val")
        opts += ["TEST.VAL_LOSS_DATASET", validation if in_val else f"{family}val"]
    if not expects:
        opts += [_EXPECTED, "[]"]
    return opts


def _is_of(family: str, name: str) -> bool:
    match = _SPLIT.fullmatch(name)
    return match is not None and match[1] == family


def _check_unseen(
    stage: Stage,
    fold: int,
    tested: set[tuple[str, str]],
    pictures: Callable[[str], set[tuple[str, str]]],
) -> None:
    """Whatever the names of data sets say: no picture of the fold may be learned from."""
    cfg = stage.cfg
    names = [*cfg.DATASETS.TRAIN]
    if cfg.TEST.VAL_LOSS_PERIOD > 0:
        names.append(validation_dataset(cfg))
    for name in names:
        if seen := tested & pictures(name):
            raise StageError(
                f"fold {fold}, stage {stage.number}: {name} has {len(seen)} pictures of those that "
                f"the fold is tested on, e.g. {min(seen)[1]}"
            )


def _pictures(dataset: str) -> set[tuple[str, str]]:
    """What tells pictures of a data set apart: their folder of shards, and their name."""
    records = DatasetCatalog.get(dataset)
    return {(str(Path(d["shard"]).parent), d["image_id"]) for d in records if "shard" in d}


def _read_record(output_dir: Path) -> dict[str, Any]:
    """What `Folds.begin` noted down; {} where nothing is."""
    path = output_dir / FOLDS
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text())
        return {**record, "folds": int(record["folds"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StageError(
            f"{path}: does not say how many folds there are ({error}); take another --output-dir"
        ) from error

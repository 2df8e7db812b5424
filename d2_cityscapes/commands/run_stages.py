"""Train the stages of the recipe in sequence, each from the final weights of the one before.

The output folder receives
  stage0/, stage1/ ...  config, metrics, checkpoints, results.json and pictures of each
  anchors.json, .png    the k-means anchors of the stages that ask for them
  table5.md, .json      the stages side by side, by boxes and by masks, and the AP of each class
  results.json          of the last stage
  loss_curves.png, report.html
A stage 0 that is a DeepLabv3 hands on its backbone, as stage0/backbone.pth.

With --folds K the partitions of the training split are dealt to K folds, and the stages run once a
fold, in fold1/, fold2/ ...: all of them train on the other folds, fit their anchors to these, and
are tested on the fold. In the end there are
  folds.md, .json       of each metric mean, standard deviation and values of the folds
  loss_curves.png, report.html

Safe to interrupt or kill at any moment: the same command skips finished stages and resumes the one
that was interrupted; with SEED set, the weights are those of a run without the stop. A stage that
has begun refuses other settings than it began with.

examples:
  d2c stages --output-dir output SEED 1
  d2c stages --output-dir output --stages 0 1 2 3 4
  d2c stages --output-dir output --stages 2 3 SOLVER.IMS_PER_BATCH 2
  d2c stages --output-dir output --stages 1 2 3 MODEL.WEIGHTS backbone.pth
  d2c stages --output-dir output_folds --folds 4 SEED 1
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d2_cityscapes import register_components
from d2_cityscapes.commands.cli import HelpFormatter, from_scratch
from d2_cityscapes.shipped import CONFIGS, find_config

if TYPE_CHECKING:
    from d2_cityscapes.stages.run import Stage

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the whole run")
    parser.add_argument(
        "--stages",
        nargs="+",
        default=["0", "1", "2", "3"],
        metavar="N",
        help="which ones; the first begins with the weights of an earlier run in the same folder, "
        "or with MODEL.WEIGHTS; 4 adds the semantic head and fusion, for panoptic segmentation",
    )
    parser.add_argument(
        "--config-dir",
        type=find_config,
        default=CONFIGS,
        help="folder with stage0.yaml, stage1.yaml, ...",
    )
    parser.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="cross-validation: the stages once for each of K parts of the training split",
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="begin with random weights, whatever MODEL.WEIGHTS the config names",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides for every stage")
    args = parser.parse_args(argv)
    # "--stages 2 3 SOLVER.MAX_ITER 10": argparse gives the overrides to the open-ended option
    numbers = list(itertools.takewhile(str.isdigit, args.stages))
    args.opts = args.stages[len(numbers) :] + args.opts
    args.stages = [int(number) for number in numbers]
    if not args.stages:
        parser.error("--stages needs numbers, e.g. --stages 2 3")
    if args.from_scratch:
        args.opts = from_scratch(parser, args.opts)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    register_components()
    from d2_cityscapes.files import check_folder
    from d2_cityscapes.stages.folds import check_kind
    from d2_cityscapes.stages.run import plan_stages

    check_folder(args.output_dir)
    check_kind(args.output_dir, args.folds)
    if args.folds is not None:
        _run_folds(args)
        return
    plan = plan_stages(
        args.output_dir, config_dir=args.config_dir, stages=args.stages, opts=args.opts
    )
    _run(args.output_dir, plan)


def _run(folder: Path, plan: Sequence[Stage]) -> None:
    """The stages of a plan, and what a run leaves beside them."""
    from d2_cityscapes.files import write_atomically
    from d2_cityscapes.report.stage_table import write_stage_tables
    from d2_cityscapes.stages.run import run_stages, stage_results, summary

    run_stages(plan)
    write_atomically(folder / "results.json", [plan[-1].results.read_bytes()])
    tables = write_stage_tables(stage_results(plan), folder / "table5")
    report = _draw(folder)
    print(*(f"\n{table.text()}" for table in tables), "", *summary(plan), sep="\n")
    print(f"tables:   {folder / 'table5.md'}")
    print(f"pictures: {plan[-1].output_dir / 'pictures'}")
    print(f"report:   {report}", flush=True)


def _run_folds(args: argparse.Namespace) -> None:
    from d2_cityscapes.report.fold_table import make_fold_table, write_fold_table
    from d2_cityscapes.run_folder import FOLDS
    from d2_cityscapes.stages.folds import plan_folds

    folder = args.output_dir
    folds = plan_folds(
        folder, args.folds, config_dir=args.config_dir, stages=args.stages, opts=args.opts
    )
    folds.begin(folder)
    for number, (plan, images) in enumerate(zip(folds.plans, folds.images, strict=True), 1):
        name = f"fold {number} of {args.folds}"
        print(f"\n{name}: tested on {images} pictures of {folds.dataset}", flush=True)
        _run(folder / f"fold{number}", plan)
    table = make_fold_table(folds.dataset, folds.images, folds.results())
    write_fold_table(table, folds.record(), folder / FOLDS)
    report = _draw(folder)
    print(
        f"\n{table.text()}\n", f"table:    {folder / 'folds.md'}", f"report:   {report}", sep="\n"
    )


def _draw(folder: Path) -> Path:
    """Loss curves and the page of a folder of stages or folds."""
    from d2_cityscapes.report.curves import draw_loss_curves
    from d2_cityscapes.report.run import find_runs, write_report

    curves = {run.name: run.metrics for run in find_runs(folder) if run.metrics.is_file()}
    draw_loss_curves(curves, folder / "loss_curves.png")
    return write_report(folder)

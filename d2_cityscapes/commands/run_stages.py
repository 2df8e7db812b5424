"""Train the stages of the recipe in sequence, each from the final weights of the one before.

The output folder receives
  stage0/, stage1/ ...  config, metrics, checkpoints, results.json and pictures of each
  anchors.json, .png    the k-means anchors of the stages that ask for them
  table5.md, .json      the stages side by side, by boxes and by masks, and the AP of each class
  results.json          of the last stage
  loss_curves.png, report.html
A stage 0 that is a DeepLabv3 hands on its backbone, as stage0/backbone.pth.

Safe to interrupt or kill at any moment: the same command skips finished stages and resumes the one
that was interrupted; with SEED set, the weights are those of a run without the stop. A stage that
has begun refuses other settings than it began with.

examples:
  d2c stages --output-dir output SEED 1
  d2c stages --output-dir output --stages 0 1 2 3 4
  d2c stages --output-dir output --stages 2 3 SOLVER.IMS_PER_BATCH 2
  d2c stages --output-dir output --stages 1 2 3 MODEL.WEIGHTS backbone.pth
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from d2_cityscapes import register_components
from d2_cityscapes.commands.cli import HelpFormatter, from_scratch
from d2_cityscapes.shipped import CONFIGS, find_config

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
    from d2_cityscapes.files import check_folder, write_atomically
    from d2_cityscapes.report.curves import draw_loss_curves
    from d2_cityscapes.report.run import find_runs, write_report
    from d2_cityscapes.report.stage_table import write_stage_tables
    from d2_cityscapes.stages.run import plan_stages, run_stages, stage_results, summary

    check_folder(args.output_dir)
    plan = plan_stages(
        args.output_dir, config_dir=args.config_dir, stages=args.stages, opts=args.opts
    )
    run_stages(plan)
    write_atomically(args.output_dir / "results.json", [plan[-1].results.read_bytes()])
    curves = {run.name: run.metrics for run in find_runs(args.output_dir) if run.metrics.is_file()}
    draw_loss_curves(curves, args.output_dir / "loss_curves.png")
    tables = write_stage_tables(stage_results(plan), args.output_dir / "table5")
    report = write_report(args.output_dir)
    print(*(f"\n{table.text()}" for table in tables), "", *summary(plan), sep="\n")
    print(f"tables:   {args.output_dir / 'table5.md'}")
    print(f"pictures: {plan[-1].output_dir / 'pictures'}")
    print(f"report:   {report}")

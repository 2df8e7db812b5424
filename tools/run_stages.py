#!/usr/bin/env python
"""Train the stages of the recipe in sequence, each from the final weights of the one before.

Writes stage0/ ... stage3/ (config, metrics, checkpoints, results.json, pictures), anchors.json,
and of the last stage results.json, with loss_curves.png and report.html. Safe to interrupt: the
same command skips finished stages and resumes the one that was interrupted.
"""

import argparse
import itertools
import shutil
from pathlib import Path

from d2_cityscapes.cli import HelpFormatter, run
from d2_cityscapes.dependencies import require_detectron2

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the whole run")
    parser.add_argument("--stages", nargs="+", default=["0", "1", "2", "3"], help="which ones")
    parser.add_argument(
        "--config-dir", type=Path, default=CONFIGS, help="folder with stage0.yaml ... stage3.yaml"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides for every stage")
    args = parser.parse_args()
    # "--stages 2 3 SOLVER.MAX_ITER 10": argparse gives the overrides to the open-ended option
    numbers = list(itertools.takewhile(str.isdigit, args.stages))
    args.opts = args.stages[len(numbers) :] + args.opts
    args.stages = [int(number) for number in numbers]
    if not args.stages:
        parser.error("--stages needs numbers, e.g. --stages 2 3")
    return args


def main() -> None:
    args = parse_args()
    require_detectron2()
    from d2_cityscapes.engine.stages import plan_stages, run_stages, summary
    from d2_cityscapes.evaluation.curves import draw_loss_curves
    from d2_cityscapes.evaluation.report import find_runs, write_report

    plan = plan_stages(
        args.output_dir, config_dir=args.config_dir, stages=args.stages, opts=args.opts
    )
    run_stages(plan)
    shutil.copyfile(plan[-1].results, args.output_dir / "results.json")
    curves = {run.name: run.metrics for run in find_runs(args.output_dir) if run.metrics.is_file()}
    draw_loss_curves(curves, args.output_dir / "loss_curves.png")
    report = write_report(args.output_dir)
    print(*summary(plan), sep="\n")
    print(f"pictures: {plan[-1].output_dir / 'pictures'}")
    print(f"report:   {report}")


if __name__ == "__main__":
    run(main)

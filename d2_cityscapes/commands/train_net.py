"""Train or evaluate a model that a config describes.

Takes Detectron2's standard arguments; overrides follow as KEY VALUE pairs:

  d2c train --config-file configs/stage3.yaml SOLVER.MAX_ITER 100 OUTPUT_DIR out
  d2c train --config-file out/config.yaml --eval-only MODEL.WEIGHTS out/model_final.pth
  d2c train --config-file configs/stage3.yaml --dry-run SOLVER.IMS_PER_BATCH 8

OUTPUT_DIR receives config.yaml, metrics.json, checkpoints, results.json and pictures. --eval-only
leaves a training that is there as it is: it writes results.json, pictures and its config,
evaluation.yaml, to OUTPUT_DIR/evaluation/DATASET, or to OUTPUT_DIR where no training is. --dry-run
writes nothing: it trains a step in memory and prints how many parameters there are and train, what
they and a batch take of the memory, and on a GPU the peak of a step and the largest batch that
fits. It runs in one process; with --num-gpus N, or under torchrun, that stands for one of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from d2_cityscapes import register_components
from d2_cityscapes.commands.cli import add_allow_pickle, from_scratch, positive

__all__ = ["add_detectron2_arguments", "main", "train_or_evaluate"]


def train_or_evaluate(args: argparse.Namespace) -> None:
    """What each process of a training does; worker processes import it by name."""
    from d2_cityscapes.engine.trainer import evaluate, setup, train
    from d2_cityscapes.tensor_files import pickles_allowed

    with pickles_allowed(args.allow_pickle):
        cfg = setup(args)
        if args.eval_only:
            evaluate(cfg, allow_unused=args.allow_unused)
        else:
            train(cfg, resume=args.resume, profile=args.profile, allow_unused=args.allow_unused)


def measure(args: argparse.Namespace) -> None:
    from d2_cityscapes.engine.computing import computing
    from d2_cityscapes.engine.dry_run import dry_run
    from d2_cityscapes.engine.trainer import checked_config
    from d2_cityscapes.tensor_files import pickles_allowed

    processes = int(os.environ.get("WORLD_SIZE", args.num_gpus * args.num_machines))  # of torchrun
    if int(os.environ.get("RANK", 0)) == 0:
        cfg = checked_config(args)
        with computing(cfg), pickles_allowed(args.allow_pickle):
            found = dry_run(cfg, processes=processes)
        print(found.table())


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_detectron2_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the training would need, and end"
    )
    parser.add_argument(
        "--profile",
        type=positive,
        default=0,
        metavar="N",
        help="write a torch profiler trace of N early steps to OUTPUT_DIR/profile",
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="begin with random weights, whatever MODEL.WEIGHTS the config names",
    )
    parser.add_argument(
        "--allow-unused",
        action="store_true",
        help="warn of keys that have no effect on this run, instead of refusing them",
    )
    add_allow_pickle(parser)
    args = parser.parse_args(argv)
    if args.from_scratch:
        args.opts = from_scratch(parser, args.opts)
    given = [name for name in ("dry_run", "eval_only") if getattr(args, name)]
    given += [name for name in ("resume", "profile") if getattr(args, name) and given]
    if len(given) > 1 and given != ["eval_only", "resume"]:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        parser.error(f"{names} do not go together")
    return args


def add_detectron2_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of its ``default_argument_parser``, which takes seconds to import."""
    parser.add_argument("--config-file", default="", metavar="FILE", help="YAML file of the config")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, and end")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="on each machine")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="in all")
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="K", help="of this machine, from 0"
    )
    user = os.getuid() if sys.platform != "win32" else 1
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{2**15 + 2**14 + hash(user) % 2**14}",
        metavar="URL",
        help="where processes meet, by default on a port of this machine that the user's id gives",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    register_components()
    if args.dry_run:
        measure(args)
        return
    from d2_cityscapes.engine.distributed import launch

    launch(train_or_evaluate, args)

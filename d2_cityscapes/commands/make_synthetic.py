"""Make up street scenes in the layout of the Cityscapes download, with exact annotations.

The result can stand in for the real data set wherever its files are read: pictures, instance ids,
label ids, colours and polygons under leftImg8bit/ and gtFine/ (train_extra: gtCoarse/). The same
seed and arguments give the same bytes; a run that was killed is completed by the same command.

example:
  d2c scenes --output DIR --train 160 --val 40 --height 256 --width 512
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from d2_cityscapes.commands.cli import HelpFormatter

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--output", required=True, help="folder to write; new, empty or begun by this command"
    )
    parser.add_argument("--train", type=int, required=True, help="number of training images")
    parser.add_argument("--val", type=int, required=True, help="number of validation images")
    parser.add_argument(
        "--train-extra", type=int, default=0, help="number of images with coarse annotations"
    )
    parser.add_argument("--height", type=int, default=1024, help="height of the pictures, px")
    parser.add_argument("--width", type=int, default=2048, help="width of the pictures, px")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes")
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    arguments = parser.parse_args(argv)

    from d2_cityscapes.synthetic.dataset import make_tree

    root = make_tree(
        arguments.output,
        train=arguments.train,
        val=arguments.val,
        train_extra=arguments.train_extra,
        height=arguments.height,
        width=arguments.width,
        seed=arguments.seed,
        workers=arguments.workers,
        progress=True,
    )
    print(f"{arguments.train + arguments.val + arguments.train_extra} scenes in {root}")

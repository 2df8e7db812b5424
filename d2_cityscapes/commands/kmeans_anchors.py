"""Fit anchor sizes and height/width ratios to the training boxes of a config.

Boxes are taken as the network sees them, after the config's training resize. Prints the anchors
and how well they fit, beside Detectron2's default anchors, and writes a JSON file and a plot beside
it. Use it in training with

    MODEL.ANCHOR_GENERATOR.NAME KMeansAnchorGenerator
    MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE anchors.json

With MODEL.ANCHOR_GENERATOR.KMEANS.METHOD paper they are fitted as in the staged paper, on plain
scales instead of logarithmic ones; with METHOD joint sizes and ratios together, by IoU, with
ratios for each feature level.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from d2_cityscapes.commands.cli import HelpFormatter

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--config-file", required=True, help="config whose DATASETS.TRAIN is used")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="config overrides, e.g. MODEL.ANCHOR_GENERATOR.KMEANS.NUM_SIZES 5",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    from d2_cityscapes import register_components

    register_components()
    from d2_cityscapes.config_files import config_files
    from d2_cityscapes.data.register import shard_files
    from d2_cityscapes.engine.checks.values import check_values
    from d2_cityscapes.engine.setup import load_config
    from d2_cityscapes.files import check_beside, check_outputs
    from d2_cityscapes.modeling.anchors.generator import fit_anchors

    cfg = load_config(args.config_file, args.opts)
    check_values(cfg)
    plot = args.output.with_suffix(".png")
    inputs = itertools.chain(config_files(args.config_file), shard_files(cfg.DATASETS.TRAIN))
    check_outputs([args.output, plot], inputs)
    check_beside(args.output, plot)
    found = fit_anchors(cfg, args.output)
    print(f"{found.num_boxes} boxes of {', '.join(found.datasets)}, resized by {found.resize}")
    print("sizes [px]     ", *(f"{size:.1f}" for size in found.anchors.sizes))
    per_level = len(found.anchors.aspect_ratios) > 1
    for size, ratios in zip(found.anchors.sizes, found.anchors.aspect_ratios, strict=False):
        scope = [f"at {size:.1f} px"] if per_level else []
        print("height / width ", *(f"{ratio:.3f}" for ratio in ratios), *scope)
    print(f"{'anchors':<16}{'mean best IoU':>14}{'recall@0.5':>12}{'recall@0.7':>12}")
    for name, quality in found.quality.items():
        print(
            f"{name:<16}{quality.mean_best_iou:>14.3f}{quality.recall_50:>12.3f}"
            f"{quality.recall_70:>12.3f}"
        )
    print(f"wrote {args.output} and {plot}")

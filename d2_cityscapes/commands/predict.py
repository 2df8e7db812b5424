"""Predict pictures with a trained model: a drawing and a map of instance ids for each.

OUTPUT receives <name>_drawn.jpg and <name>_instanceIds.png, 16-bit: label_id * 1000 + k for an
instance, the plain label id for other pixels, as in Cityscapes. A model of instances leaves the
rest 0. Both have the size of the picture as viewers show it, turned by its EXIF orientation; 16
bits are scaled to 8. A rerun predicts everything anew; files of these names that are not of this
command, which marks its own by a comment in them, are never overwritten.

Of a folder, and those below it, PNG, JPEG, BMP, WebP and TIFF are predicted. Passed over, and
counted in the end, are files of other kinds, those with a dot in front, and *_drawn.jpg and
*_instanceIds.png of an earlier run (marked, or side by side). Damaged pictures do not stop the
others; they are named in the end, and the exit code is 1.

Overrides follow as KEY VALUE pairs; config.yaml of a run names the weights that the run began with,
so MODEL.WEIGHTS is needed.

examples:
  d2c predict --config-file output/stage3/config.yaml --input street.jpg folder
      --output predictions MODEL.WEIGHTS output/stage3/model_final.pth
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2_cityscapes import register_components
from d2_cityscapes.commands.cli import HelpFormatter

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the model")
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, metavar="PATH", help="pictures, folders"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="to write to")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    register_components()
    from d2_cityscapes.engine.checks.config import check_model_config
    from d2_cityscapes.engine.computing import computing
    from d2_cityscapes.engine.prediction import predict_pictures
    from d2_cityscapes.engine.setup import check_weights_file, load_config

    cfg = load_config(args.config_file, args.opts, train=False)
    check_model_config(cfg)
    check_weights_file(cfg)
    with computing(cfg):
        found = predict_pictures(cfg, args.input, args.output)
    print(f"{len(found.pictures)} pictures in {args.output}{found.passed_over_text()}")

"""Export a trained model to a folder that runs elsewhere, compared with the model.

  onnx          model.onnx and run.py, which needs numpy, Pillow and onnxruntime alone
  openvino      model.xml and model.bin, and run.py with openvino
  torch-export  model.pt2, and run.py with torch and torchvision
  detectron2    config.yaml and model.pth for stock Detectron2, without this package
  safetensors   config.yaml and model.safetensors, weights without code, for this package

One graph takes the pixels of a picture (uint8, behind the resize) and gives results; run.py resizes
before it and pastes masks and fuses panoptics behind it. Beside them are model.json (input,
classes, thresholds, versions) and README.md, the model's card. The export is run at once on
pictures of DATASETS.TEST, or those of --pictures, and compared with the model: maps equal in 99.9 %
of the pixels, boxes within 0.5 px, the same classes, AP, PQ and mIoU within 0.1. One that differs
is refused, with the numbers, and nothing is left of it.

Overrides follow as KEY VALUE pairs.

examples:
  d2c export --format onnx --run output/stage3 --output exported
  d2c export --format openvino --run output/stage0 --output exported --size 1024 2048
  d2c export --format onnx --config-file output/stage3/config.yaml --pictures street.jpg
      --output exported MODEL.WEIGHTS output/stage3/model_0000399.pth
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2_cityscapes import register_components
from d2_cityscapes.commands.cli import HelpFormatter, positive
from d2_cityscapes.export.kinds import FORMATS

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--format", required=True, choices=FORMATS, help="see above")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", type=Path, metavar="DIR", help="folder of a training")
    model.add_argument("--config-file", metavar="FILE", help="with MODEL.WEIGHTS behind")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new, or an earlier export"
    )
    parser.add_argument(
        "--size",
        type=positive,
        nargs=2,
        metavar=("H", "W"),
        help="of the pictures, in pixels: a graph for them alone; by default for any",
    )
    parser.add_argument(
        "--check", type=positive, default=20, metavar="N", help="most pictures to compare on"
    )
    parser.add_argument(
        "--pictures", type=Path, nargs="+", default=(), metavar="FILE", help="compare on these"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    register_components()
    from d2_cityscapes.export.folder import export_model

    lines = export_model(
        args.run or (args.config_file, ""),
        args.output,
        args.format,
        opts=args.opts,
        size=tuple(args.size) if args.size else None,
        check=args.check,
        pictures=args.pictures,
    )
    print(*lines, sep="\n")

"""Predict pictures, videos, cameras or shards with a trained model.

INPUT is any number of
  pictures and folders   of a folder PNG, JPEG, BMP, WebP and TIFF, and of those below it
  patterns               '*.png', 'drive/**/*.jpg', quoted; ** is any number of folders
  videos                 mp4, avi, mkv, mov, webm ... by name or pattern
  cameras                camera:0 or /dev/video0, until Ctrl-C (Linux)
  shards                 the name of a dataset, e.g. cityscapes_shards_val, a folder or a file

OUTPUT receives, by --format,
  drawn      <name>_drawn.jpg, the picture under its prediction
  ids        <name>_instanceIds.png, 16-bit: label_id * 1000 + k for an instance, the plain label id
             for other pixels, as in Cityscapes. A model of instances leaves the rest 0
  coco       coco_instances_results.json, for COCO.loadRes, and coco_images.json, which says what
             its ids mean; with --coco-truth FILE the ids are those of that file
  panoptic   panoptic.json and panoptic/<name>_panoptic.png, in COCO's panoptic format
  video      <name>_drawn.mp4, with the times of the video
Without --format that is "drawn ids" of pictures and "video" of videos and cameras. Of a video the
other formats are written for each frame, as <name>/<number>.

Pictures have the size and stand as viewers show them, turned by their EXIF orientation; 16 bits are
scaled to 8. A rerun predicts everything anew; files of these names that are not of this command,
which marks its own, are never overwritten. Passed over in folders, and counted in the end, are
files of other kinds, videos, files with a dot in front, and what an earlier run has written. What
is damaged does not stop the rest; it is named in the end, and the exit code is 1.

Overrides follow as KEY VALUE pairs. --config-file needs MODEL.WEIGHTS among them, as config.yaml of
a run names the weights that the run began with; --model brings its weights along.

examples:
  d2c predict --model output/stage3 --input street.jpg folder --output predictions
  d2c predict --config-file output/stage3/config.yaml --input drive.mp4 --output predictions
      MODEL.WEIGHTS output/stage3/model_0000999.pth
  d2c predict --model output/stage3 --input aerial.tif --tiles 3x4 --output predictions
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2_cityscapes import register_components
from d2_cityscapes.commands.cli import HelpFormatter, add_allow_pickle, not_negative, positive

__all__ = ["main"]

_FORMATS = ("drawn", "ids", "coco", "panoptic", "video")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="PATH", help="folder of a training, or its weights")
    model.add_argument("--config-file", metavar="FILE", help="of the model")
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="INPUT", help="see above", default=None
    )
    parser.add_argument(
        "--format", nargs="+", choices=_FORMATS, default=[], help="what to write, see above"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="to write to")
    parser.add_argument(
        "--batch-size", type=positive, default=1, metavar="N",
        help="pictures of one size that are seen together",
    )  # fmt: skip
    parser.add_argument(
        "--tiles", metavar="ROWSxCOLUMNS",
        help="cut large pictures in tiles, which are not resized, and join what they show",
    )  # fmt: skip
    parser.add_argument(
        "--tile-overlap",
        type=float,
        metavar="PART",
        help="of a tile's side, 0 to 0.9 (default: 0.2)",
    )
    parser.add_argument(
        "--score-threshold", type=float, metavar="SCORE",
        help="least score of what is drawn (default: 0.5, or what the config says of panoptics)",
    )  # fmt: skip
    parser.add_argument(
        "--frames", type=not_negative, default=0, metavar="N",
        help="of each video or camera the first N; 0: all",
    )  # fmt: skip
    parser.add_argument(
        "--coco-truth",
        type=Path,
        metavar="FILE",
        help="a COCO JSON, whose ids the format coco takes",
    )
    add_allow_pickle(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    args = parser.parse_args(argv)
    if args.tile_overlap is not None and not args.tiles:
        parser.error("--tile-overlap goes with --tiles")
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold {args.score_threshold:g}: use a number from 0 to 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    register_components()
    from d2_cityscapes.engine.computing import computing
    from d2_cityscapes.engine.prediction.loading import model_config
    from d2_cityscapes.engine.prediction.run import Options, predict
    from d2_cityscapes.engine.prediction.tiles import Tiling
    from d2_cityscapes.tensor_files import pickles_allowed

    overlap = 0.2 if args.tile_overlap is None else args.tile_overlap
    options = Options(
        formats=args.format,
        batch_size=args.batch_size,
        tiling=Tiling.parse(args.tiles, overlap) if args.tiles else None,
        frames=args.frames,
        score_threshold=args.score_threshold,
        coco_truth=args.coco_truth,
    )
    cfg = model_config(args.model or (args.config_file, ""), args.opts)
    with computing(cfg), pickles_allowed(args.allow_pickle):
        done = predict(cfg, args.input, args.output, options)
    print(f"{done.images} pictures in {args.output}{done.found.passed_over_text()}")
    for note in done.notes:
        print(note)

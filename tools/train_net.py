#!/usr/bin/env python
"""Train or evaluate a model that a config describes.

Takes Detectron2's standard arguments; overrides follow as KEY VALUE pairs:

  tools/train_net.py --config-file configs/stage3.yaml SOLVER.MAX_ITER 100 OUTPUT_DIR out
  tools/train_net.py --config-file out/config.yaml --eval-only MODEL.WEIGHTS out/model_final.pth

OUTPUT_DIR receives config.yaml, metrics.json, checkpoints, results.json and pictures.
"""

from d2_cityscapes.cli import run
from d2_cityscapes.dependencies import require_detectron2


def train_or_evaluate(args) -> None:  # module level: worker processes import it by name
    from d2_cityscapes.engine.trainer import evaluate, setup, train

    cfg = setup(args)
    if args.eval_only:
        evaluate(cfg)
    else:
        train(cfg, resume=args.resume)


def main() -> None:
    require_detectron2()
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(epilog="")
    parser.description = __doc__
    args = parser.parse_args()
    from d2_cityscapes.engine.distributed import launch

    launch(train_or_evaluate, args)


if __name__ == "__main__":
    run(main)

"""Convert weights: into this package, to the classes of Cityscapes, and back to stock Detectron2.

Say what was converted and what was left behind. The output appears whole or not at all, and nothing
in the input is ever run as code. Each conversion has its own --help.

examples:
  d2c convert torchvision-deeplab --input stage0/model_final.pth
      --output stage0/backbone.pth
  d2c convert torchvision-rcnn --input maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth
      --output coco.pth
  d2c convert mmdetection --input mask_rcnn_r50_fpn_1x_cityscapes.pth --output rcnn.pth
  d2c convert coco-to-cityscapes --input model_final_f10217.pkl
      --output coco_cityscapes.pth --rider random
  d2c convert vistas-to-cityscapes --input stage0/model_final.pth --output begin.pth
  d2c convert seamseg --input seamseg.tar --output seamless.pth
  d2c convert mask2former --input model_final.pkl --output mask2former.pth
  d2c convert to-safetensors --input model_final_f10217.pkl --output coco.safetensors
  d2c convert to-detectron2 --input stage3/model_final.pth --output stock
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2_cityscapes import register_components
from d2_cityscapes.commands.cli import HelpFormatter, add_allow_pickle
from d2_cityscapes.convert import convert_file
from d2_cityscapes.convert.kinds import CONVERSIONS, RIDERS

__all__ = ["main"]

TORCHVISION = """\
ResNet in torchvision's names -> body of Detectron2's ResNet FPN.

Takes a state dict (.pth) of a ResNet, ResNeXt or Wide ResNet of any depth, or of a model around
one, such as deeplabv3_resnet50, or a checkpoint of DeepLabV3Segmentor. Heads are left behind and
listed. The features stay the same under configs/Base-RCNN-FPN-Cityscapes.yaml: RGB, torchvision's
mean and standard deviation, MODEL.RESNETS.STRIDE_IN_1X1 False.
"""
SEGMENTOR = """\
DeepLabv3 of torchvision -> DeepLabV3Segmentor.

Takes deeplabv3_resnet50 or 101, with the auxiliary head or without it, which then begins at random.
Of the 21 classes of VOC, which torchvision publishes, those that Cityscapes has too keep their
rows, and its others begin at random; weights of other classes stay as they are. Scores are
torchvision's.
"""
RCNN = """\
Faster or Mask R-CNN of torchvision -> Detectron2's.

Takes fasterrcnn_resnet50_fpn and maskrcnn_resnet50_fpn, of version 1 and 2, or an own training of
such a network with any ResNet. Background becomes the last class; of COCO's 91 ids those stay that
name a class. configs/converted/torchvision_mask_rcnn_R_50_FPN.yaml, and _v2, predict as torchvision
does; the report says what else to set.
"""
MMDETECTION = """\
Faster or Mask R-CNN of open-mmlab/mmdetection -> Detectron2's.

Takes a checkpoint of version 2 or 3 with a ResNet and FPN, such as mask-rcnn_r50_fpn_1x_cityscapes.
Classes of Cityscapes come into our order, by the names in its meta.
configs/converted/mmdetection_mask_rcnn_R_50_FPN.yaml predicts as mmdetection does; the report says
what else to set.
"""
COCO = """\
COCO detector of Detectron2 -> the 8 thing classes of Cityscapes.

Takes a Faster or Mask R-CNN of Detectron2's model zoo (.pkl) or of an own training (.pth). Rows of
the 7 shared classes and of background are kept; all other layers, class-agnostic ones among them,
stay as they are. COCO has no rider; its rows become, by --rider:
"""
CLASSES = """\
Weights for the classes of {name} -> those of Cityscapes.

Takes what this package has trained on {name}: RoI heads, semantic heads, mask transformers. A class
of Cityscapes gets the rows of the class that means the same; it is said which begin at random:
{how}. Everything else stays as it is.
"""
VISTAS = CLASSES.format(
    name="Mapillary Vistas", how="train among things, as it has no instances there"
)
IDD = CLASSES.format(name="the Indian Driving Dataset", how="train and terrain")
SEAMSEG = """\
Weights of mapillary/seamseg (Seamless Scene Segmentation) -> SeamlessPanoptic.

Takes a snapshot of its panoptic network, of any number of classes, which stay in their order. The
weights of norms become |w| + 1e-5, as its in-place activated batch norm uses them; background moves
to the end of the classes, and x before y in the boxes. configs/panoptic/seamless_R_50_FPN.yaml is
the network for Cityscapes.
"""
MASK2FORMER = """\
Weights of facebookresearch/Mask2Former -> UniversalSegmentor.

Takes a checkpoint of its model zoo (.pkl) or of an own training, with a ResNet or Swin, of any
number of classes; or such a backbone alone, also one that torchvision-deeplab has made.
configs/universal has the networks; the config of weights of another size names it in
MODEL.UNIVERSAL.CONFIG.
"""
STOCK = """\
Trained model of this package -> config.yaml and model.pth for stock Detectron2.

Detectron2 0.6 or later loads them with DefaultPredictor or its demo, without this package, and
predicts the same, bit for bit where the config computes and resizes as stock does, and up to
rounding otherwise, which a line then says. GIoU, freezing and the like only matter in training;
k-means anchors are written as literal lists. Parts without an equivalent, such as
DeepLabV3Segmentor, are refused.
"""


PORTABLE = """\
Weights of anybody (.pth, .pkl, .pyth) -> .safetensors, which cannot hold code.

The names stay. With them go, as far as they are known, the classes, the anchors and the config,
which d2c predict --model and Python's d2c.load need no other file for.
"""

_WITH_SEED = (
    "torchvision-segmentor",
    "coco-to-cityscapes",
    "vistas-to-cityscapes",
    "idd-to-cityscapes",
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    riders = "\n".join(f"  {name:<11} {meaning}" for name, meaning in RIDERS.items())
    texts = {
        "torchvision-deeplab": TORCHVISION,
        "torchvision-resnet": TORCHVISION,
        "torchvision-segmentor": SEGMENTOR,
        "torchvision-rcnn": RCNN,
        "mmdetection": MMDETECTION,
        "coco-to-cityscapes": f"{COCO}\n{riders}\n",
        "vistas-to-cityscapes": VISTAS,
        "idd-to-cityscapes": IDD,
        "seamseg": SEAMSEG,
        "mask2former": MASK2FORMER,
        "to-safetensors": PORTABLE,
        "to-detectron2": STOCK,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    commands = parser.add_subparsers(dest="kind", required=True, metavar="CONVERSION")
    parsers = {}
    for kind in CONVERSIONS:
        parsers[kind] = sub = commands.add_parser(
            kind,
            help=texts[kind].splitlines()[0].rstrip("."),
            description=texts[kind],
            formatter_class=HelpFormatter,
        )
        out = "DIR" if kind == "to-detectron2" else "FILE"
        sub.add_argument("--input", type=Path, required=True, metavar="FILE", help="to read")
        sub.add_argument("--output", type=Path, required=True, metavar=out, help="to write")
        if kind != "to-detectron2":
            sub.add_argument("--details", action="store_true", help="a line for every tensor")
    coco = parsers["coco-to-cityscapes"]
    coco.add_argument("--rider", choices=RIDERS, default="random", help="rows of class rider")
    for kind in _WITH_SEED:
        parsers[kind].add_argument("--seed", type=int, default=0, help="of its random numbers")
    parsers["torchvision-rcnn"].add_argument(
        "--norm-epsilon",
        type=_epsilon,
        metavar="E",
        help="that the norms were trained with: by default 0 for frozen ones with COCO's 91 rows, "
        "which is what torchvision publishes, otherwise 1e-5",
    )
    parsers["to-detectron2"].add_argument(
        "--config-file", type=Path, metavar="FILE", help="by default config.yaml beside --input"
    )
    parsers["to-safetensors"].add_argument(
        "--config-file",
        type=Path,
        metavar="FILE",
        help="config.yaml of the training, by default that beside --input, if there is one",
    )
    for sub in parsers.values():
        add_allow_pickle(sub)
    return parser.parse_args(argv)


def _epsilon(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    options = vars(parse_args(argv))
    from d2_cityscapes.tensor_files import pickles_allowed

    if options["kind"] == "to-detectron2":
        register_components()
    with pickles_allowed(options.pop("allow_pickle")):
        print(*convert_file(**options), sep="\n")

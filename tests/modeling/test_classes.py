"""Numbers of classes of heads against those of the datasets of a config."""

from __future__ import annotations

import pytest

from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.classes import check_classes

ROI = "MODEL.ROI_HEADS.NUM_CLASSES"
SEM = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
RETINA = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES"]
IDD = ["DATASETS.TRAIN", "('idd_shards_train',)", "DATASETS.TEST", "('idd_shards_val',)"]


def check(repository, config: str, *opts: object) -> None:
    cfg = load_config(repository / "configs/quick" / config, [str(opt) for opt in opts])
    check_classes(cfg)


@pytest.mark.parametrize(
    ("config", "opts", "message"),
    [
        ("instance.yaml", [ROI, 2], f"{ROI} is 2; .* needs 8 for cityscapes"),
        ("instance.yaml", [ROI, 80], f"{ROI} is 80; .* needs 8"),
        ("instance.yaml", ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", ROI, 7], "needs 8"),
        ("instance.yaml", ["MODEL.MASK_ON", "False", ROI, 7], "needs 8"),
        ("instance.yaml", [*RETINA, 80], "MODEL.RETINANET.NUM_CLASSES is 80; RetinaNet needs 8"),
        ("instance.yaml", IDD, f"{ROI} is 8; .* needs 9 for idd, .* things"),
        ("semantic.yaml", [SEM, 34], f"{SEM} is 34; .* needs 19 for cityscapes"),
        ("semantic.yaml", IDD, f"{SEM} is 19; .* needs 26 for idd"),
        ("deeplab.yaml", [SEM, 19], f"{SEM} is 19; .* needs 20 .* with void"),
        ("deeplab.yaml", ["MODEL.SEM_SEG_HEAD.VOID_CLASS", -1], f"{SEM} is 20; .* needs 19"),
        ("deeplab.yaml", IDD, f"{SEM} is 20; .* needs 27 for idd"),
        ("panoptic.yaml", [ROI, 9], f"{ROI} is 9; .* needs 8"),
        ("panoptic.yaml", [SEM, 20], f"{SEM} is 20; .* needs 19"),
        ("panoptic.yaml", IDD, "needs 9 for idd"),
    ],
)
def test_refused(repository, config, opts, message):
    with pytest.raises(D2CityscapesError, match=message) as caught:
        check(repository, config, *opts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "opts"),
    [
        ("instance.yaml", []),
        ("instance.yaml", [*IDD, ROI, 9]),
        ("instance.yaml", [SEM, 80]),  # a head that it does not have
        ("instance.yaml", [*RETINA, 8, ROI, 80]),
        ("semantic.yaml", [ROI, 80]),
        ("semantic.yaml", [*IDD, SEM, 26]),
        ("deeplab.yaml", []),
        ("panoptic.yaml", [*IDD, SEM, 26, ROI, 9]),
        ("instance.yaml", ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", ROI, 80]),
        ("instance.yaml", ["DATASETS.TRAIN", "('coco_2017_val',)", "DATASETS.TEST", "()", ROI, 80]),
    ],
)
def test_right(repository, config, opts):
    check(repository, config, *opts)


@pytest.mark.parametrize(
    "opts",
    [
        ["DATASETS.TEST", "('idd_shards_val',)"],
        ["TEST.VAL_LOSS_DATASET", "idd_shards_val"],
        ["DATASETS.TRAIN", "('cityscapes_shards_train', 'vistas_shards_train')"],
    ],
)
def test_datasets_of_other_classes_do_not_mix(repository, opts):
    with pytest.raises(D2CityscapesError, match=r"cityscapes_shards_train \(cityscapes\), .*other"):
        check(repository, "instance.yaml", *opts)

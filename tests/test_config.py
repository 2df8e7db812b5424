"""Our config keys: all of Detectron2's stay as they are, and ours are complete."""

from __future__ import annotations

import re

import pytest
from detectron2.config import get_cfg as get_detectron2_cfg

from d2_cityscapes import add_d2_cityscapes_config, get_cfg
from d2_cityscapes.config import leaves, model_tasks


def test_detectron2_defaults_are_untouched():
    stock, ours = dict(leaves(get_detectron2_cfg())), dict(leaves(get_cfg()))
    assert {key: ours[key] for key in stock} == stock
    assert not any(key.startswith("MODEL.FREEZE") for key, _ in leaves(get_detectron2_cfg()))


def test_adding_to_an_own_config_is_the_same():
    cfg = get_detectron2_cfg()
    add_d2_cityscapes_config(cfg)
    assert cfg == get_cfg()


def test_every_key_of_ours_acts_somewhere(repository):
    """No dead keys: each is read in the package outside of config.py."""
    added = dict(leaves(get_cfg())).keys() - dict(leaves(get_detectron2_cfg())).keys()
    sources = [p for p in (repository / "d2_cityscapes").rglob("*.py") if p.name != "config.py"]
    text = "\n".join(p.read_text() for p in sources)
    for key in added:
        assert re.search(rf"\.{key.rpartition('.')[2]}\b", text), key


@pytest.mark.parametrize(
    ("architecture", "mask_on", "combine", "expected"),
    [
        ("GeneralizedRCNN", True, True, ("bbox", "segm", "segm_cityscapes")),
        ("GeneralizedRCNN", False, True, ("bbox",)),
        ("SemanticSegmentor", False, True, ("sem_seg",)),
        (
            "SeamlessPanoptic",
            True,
            True,
            ("bbox", "segm", "segm_cityscapes", "sem_seg", "panoptic_seg"),
        ),
        ("SeamlessPanoptic", True, False, ("bbox", "segm", "segm_cityscapes", "sem_seg")),
    ],
)
def test_tasks_follow_the_model(architecture, mask_on, combine, expected):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = architecture, mask_on
    cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = combine
    assert model_tasks(cfg) == expected

"""Every augmentation is timed beside the mapper without."""

from __future__ import annotations

from detectron2.data import DatasetCatalog

from d2_cityscapes import get_cfg
from d2_cityscapes.benchmark.augmentation import AUGMENTATIONS, compare_augmentation
from d2_cityscapes.config import leaves


def test_every_augmentation_is_compared(datasets):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.INPUT.MIN_SIZE_TRAIN = True, (64,)
    dicts = DatasetCatalog.get("cityscapes_shards_train")[:3]
    found = compare_augmentation(cfg, dicts, rounds=1)
    assert [c.measure for c in found] == [f"mapper with {n}, CPU time" for n in AUGMENTATIONS]
    assert all(c.ours > 0 and c.theirs > 0 and c.ratio > 0 for c in found)


def test_they_are_switched_on():
    default = dict(leaves(get_cfg()))
    for opts in AUGMENTATIONS.values():
        cfg = get_cfg()
        cfg.merge_from_list(list(opts))
        changed = {k for k, v in leaves(cfg) if v != default[k]}
        assert changed and all(key.startswith("INPUT.") for key in changed)

"""What each augmentation of INPUT costs the mapper, beside the mapper without."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from d2_cityscapes.benchmark.comparison import (
    Comparison,
    compare,
    one_thread,
    time_in_turn,
)
from d2_cityscapes.data.mapper import PASTE_FROM, CityscapesShardMapper

__all__ = ["AUGMENTATIONS", "compare_augmentation"]

_JITTER = ("INPUT.SCALE_JITTER.ENABLED", True)
_COLOR = ("INPUT.COLOR_JITTER.ENABLED", True)
_PASTE = ("INPUT.COPY_PASTE.PROB", 0.5)
_WEIGHT = ("INPUT.SMALL_INSTANCE_WEIGHT", 3.0)
# Name -> what switches it on.
AUGMENTATIONS: Mapping[str, tuple[Any, ...]] = {
    "scale jitter, crop 512x1024": _JITTER,
    "large-scale jitter, 1024x2048": (
        *_JITTER, "INPUT.SCALE_JITTER.RANGE", [0.1, 2.0],
        "INPUT.SCALE_JITTER.CROP_SIZE", [1024, 2048],
    ),
    "colour jitter": _COLOR,
    "copy-paste, half of the images": _PASTE,
    "copy-paste, all images": (*_PASTE, "INPUT.COPY_PASTE.PROB", 1.0),
    "small-instance weight": _WEIGHT,
    "all, crop 512x1024, paste in half": (*_JITTER, *_COLOR, *_PASTE, *_WEIGHT),
}  # fmt: skip


def compare_augmentation(cfg: CfgNode, dicts: list[dict], *, rounds: int) -> list[Comparison]:
    """CPU time of one process, all targets built, in the mapper of a panoptic model.

    Args:
        cfg: the plain config.
        dicts: images; each is pasted on from another one.
        rounds: how often each mapper sees all of them.
    """
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "SeamlessPanoptic"
    contenders = {"": _mapper(cfg, ())}
    contenders |= {name: _mapper(cfg, opts) for name, opts in AUGMENTATIONS.items()}
    seeds = {name: iter(range(10 * rounds + 10)) for name in contenders}

    def run(name: str, mapper: Callable[[dict], dict]) -> None:
        np.random.seed(next(seeds[name]))  # the same for all; other draws in each round
        for image, second in zip(dicts, [*dicts[1:], dicts[0]], strict=True):
            mapper({**image, PASTE_FROM: second})

    with one_thread():
        seconds = time_in_turn(
            {name: partial(run, name, mapper) for name, mapper in contenders.items()},
            rounds=rounds,
            clock=time.process_time,
        )
    per_image = {name: 1000 * value / len(dicts) for name, value in seconds.items()}
    plain = per_image.pop("")
    found = []
    for name, value in per_image.items():
        found += compare(
            f"mapper with {name}, CPU time", "ms/image", value, {"without, targets alike": plain}
        )
    return found


def _mapper(cfg: CfgNode, opts: tuple[Any, ...]) -> CityscapesShardMapper:
    cfg = cfg.clone()
    cfg.merge_from_list(list(opts))
    return CityscapesShardMapper(cfg, True)

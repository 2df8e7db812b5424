"""How far below the heads each layer of a timm backbone lies, for SOLVER.LAYER_DECAY.

Layer-wise rates are those of BEiT (Bao et al., ICLR 2022) and ViTDet (Li et al., ECCV 2022): with L
layers, embeddings or stem are layer 0, blocks 1 to L, and all that comes behind them L + 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from d2_cityscapes.engine.setup import ConfigError

__all__ = ["check_layer_decay", "layers_below"]


def check_layer_decay(cfg: CfgNode) -> None:
    """Refuse a SOLVER.LAYER_DECAY that is none, or one for a model whose layers are not known.

    Raises:
        ConfigError: see above.
    """
    decay = cfg.SOLVER.LAYER_DECAY
    if not 0 < decay <= 1:
        raise ConfigError(f"SOLVER.LAYER_DECAY {decay}: use a number above 0, up to 1 for none")
    if decay != 1.0 and not _timm_name(cfg):
        raise ConfigError(
            f"SOLVER.LAYER_DECAY {decay}: needs a backbone of timm (MODEL.TIMM.NAME), whose layers "
            "are known; SOLVER.LR_MULTIPLIERS takes any model"
        )


def layers_below(cfg: CfgNode, model: nn.Module) -> dict[str, int]:
    """L + 1 - l for each parameter of the backbone by name, l being its layer; others are at 0.

    The layers are timm's own (``group_matcher``), as in its ``param_groups_layer_decay``. Those
    that a feature net leaves out do not count.

    Raises:
        ConfigError: no parameter of the model is one of the net's.
    """
    if cfg.SOLVER.LAYER_DECAY == 1.0:
        return {}
    import timm  # which the model is made of: it is there
    from timm.models import group_parameters

    name = _timm_name(cfg)
    with torch.device("meta"):
        whole: Any = timm.create_model(name, pretrained=False)
    layers = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
    known = _names_in(layers, (key for key, _ in model.named_parameters()))
    if not known:
        raise ConfigError(f"SOLVER.LAYER_DECAY: the model has no parameter of timm's {name}")
    there = sorted({layers[key] for key in known.values()}, reverse=True)
    return {name: there.index(layers[key]) + 1 for name, key in known.items()}


def _names_in(own: Collection[str], names: Iterable[str]) -> dict[str, str]:
    """Name in the model -> name in the net, of all that is the net's.

    It lies somewhere in the model: behind the beginning that gives most of its names. Its feature
    nets write "stages_0." for "stages.0.".
    """
    places: dict[str, dict[str, str]] = {}
    for name in names:
        for dot in (match.end() for match in re.finditer(r"\.", name)):
            key = name[dot:]
            for form in (key, re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key)):
                if form in own:
                    places.setdefault(name[:dot], {})[name] = form
    return max(places.values(), key=len, default={})


def _timm_name(cfg: CfgNode) -> str:
    return cfg.MODEL.TIMM.NAME if "TIMM" in cfg.MODEL else ""

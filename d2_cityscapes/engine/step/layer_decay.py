"""How far below the heads each layer of a network lies, for SOLVER.LAYER_DECAY.

Layer-wise rates are those of BEiT (Bao et al., ICLR 2022) and ViTDet (Li et al., ECCV 2022): with L
layers, embeddings or stem are layer 0, blocks 1 to L, and all that comes behind them L + 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from d2_cityscapes.engine.setup import ConfigError

__all__ = ["layers_below"]

_HEAD = "the head of a classifier"


def layers_below(model: nn.Module, decay: float) -> dict[str, int]:
    """L + 1 - l for each parameter of layer l of L, by its name in the model; others are at 0.

    Layers are known of the networks of timm, as in its ``param_groups_layer_decay``
    (``group_matcher``), and of EoMT. Those that are not in the model do not count.

    Args:
        model: of any kind.
        decay: SOLVER.LAYER_DECAY; 1 for none.

    Raises:
        ConfigError: nothing in the model has layers that are known.
    """
    below: dict[str, int] = {}
    if decay == 1.0:
        return below
    for name, module in model.named_modules():
        layers = _layers_of(module)
        there = sorted(set(layers.values()), reverse=True)
        place = f"{name}." if name else ""
        below |= {f"{place}{key}": there.index(layer) + 1 for key, layer in layers.items()}
    if not below:
        raise ConfigError(
            f"SOLVER.LAYER_DECAY {decay}: the model has no network of timm and no EoMT, whose "
            "layers are known; SOLVER.LR_MULTIPLIERS takes any"
        )
    return below


class _WithHead:
    """The parameters of a network and one more, of a classifier, which no pattern of timm matches.

    What shares its layer is not of the body: a norm that is left of a classifier that is not there.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        yield from self._network.named_parameters()
        yield _HEAD, None


def _layers_of(module: Any) -> dict[str, int]:
    """The layer of each of its parameters, from 0; {} where it is no such network."""
    if hasattr(module, "group_matcher"):
        from timm.models import group_parameters  # it is of timm, which is there

        whole: Any = _WithHead(module)
        layers = group_parameters(whole, module.group_matcher(coarse=False), reverse=True)
        head = layers.pop(_HEAD)
        return {name: layer for name, layer in layers.items() if layer != head}
    if not type(module).__name__.startswith("Eomt") or not hasattr(module, "embeddings"):
        return {}
    found = {}
    for name, _ in module.named_parameters():
        block = re.match(r"layers\.(\d+)\.", name)
        if block:
            found[name] = int(block[1]) + 1
        elif name.startswith("embeddings."):
            found[name] = 0
    return found

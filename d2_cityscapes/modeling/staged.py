"""Detectron2's meta-architectures with the options of this package, whoever builds them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, SemanticSegmentor
from torch import nn

from d2_cityscapes.modeling.freezing.guard import KeepsFrozen
from d2_cityscapes.modeling.options import nothing, put_into_force

__all__ = ["StagedRCNN", "StagedSegmentor"]


@META_ARCH_REGISTRY.register()
class StagedRCNN(KeepsFrozen, GeneralizedRCNN):
    """`GeneralizedRCNN` that freezes by MODEL.FREEZE and computes by the dense options.

    With none of them set it is `GeneralizedRCNN`, bit for bit.
    """

    @configurable
    def __init__(self, *, complete: Callable[[nn.Module], None] = nothing, **kwargs: Any) -> None:
        """
        Args:
            complete: called with the model when it has all its parts.
            kwargs: the arguments of `GeneralizedRCNN`.
        """
        super().__init__(**kwargs)
        complete(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "complete": partial(put_into_force, cfg)}


@META_ARCH_REGISTRY.register()
class StagedSegmentor(KeepsFrozen, SemanticSegmentor):
    """`SemanticSegmentor`, likewise."""

    @configurable
    def __init__(self, *, complete: Callable[[nn.Module], None] = nothing, **kwargs: Any) -> None:
        """
        Args:
            complete: called with the model when it has all its parts.
            kwargs: the arguments of `SemanticSegmentor`.
        """
        super().__init__(**kwargs)
        complete(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "complete": partial(put_into_force, cfg)}

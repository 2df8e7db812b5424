"""The meta-architecture of a config: one that there is, and that trains on shards."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from d2_cityscapes.config import model_tasks
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.errors import nearest

__all__ = ["check_architecture", "check_precise_bn"]

# Detectron2's own that do not work with the targets and evaluators of this package, and what does.
_REPLACED = {
    "PanopticFPN": "its classes of stuff are not train ids; use SeamlessPanoptic",
    "ProposalNetwork": "it predicts no classes; use StagedRCNN",
}


def check_architecture(cfg: CfgNode) -> None:
    """Refuse a MODEL.META_ARCHITECTURE that cannot be used, before anything expensive starts.

    Raises:
        ConfigError: unknown, or one of Detectron2 that does not work on shards.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        known = [known for known, _ in META_ARCH_REGISTRY if known not in _REPLACED]
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {name!r}: there is none of this name"
            f"{nearest(name, known) or '; use one of ' + ', '.join(known)}"
        )
    if name in _REPLACED:
        raise ConfigError(f"MODEL.META_ARCHITECTURE {name!r}: {_REPLACED[name]}")


def check_precise_bn(cfg: CfgNode) -> None:
    """Refuse TEST.PRECISE_BN for a model in which one batch norm serves several maps.

    fvcore's statistics know of one map for each, and say so behind the last step.

    Raises:
        ConfigError: there is such a norm.
    """
    rpn = cfg.MODEL.RPN
    shared = rpn.HEAD_NAME == "SeamlessRPNHead" and rpn.NORM.endswith("BN")
    if cfg.TEST.PRECISE_BN.ENABLED and shared and "bbox" in model_tasks(cfg):
        raise ConfigError(
            f"TEST.PRECISE_BN.ENABLED True: not with MODEL.RPN.NORM {rpn.NORM} of SeamlessRPNHead, "
            "which all levels share: set it to False, or NORM to GN"
        )

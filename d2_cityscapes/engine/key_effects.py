"""Keys of a config without effect: set, but read by nothing that was built, or of no use to it."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

from detectron2.config import CfgNode

from d2_cityscapes.config import get_cfg, leaves, plain, value_of
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.modeling.backbones.weights import uses_timm

__all__ = [
    "changed_keys",
    "check_key_effects",
    "idle_keys",
    "recorded",
    "why_without_effect",
]

logger = logging.getLogger(__name__)

# Keys that act without being read by what is built: on the process, on the start of a training, or
# for a command of their own (patterns).
_ACT_ELSEWHERE = (
    "VERSION",
    "OUTPUT_DIR",
    "SEED",
    "CUDNN_BENCHMARK",
    "DATASETS.*",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "MODEL.WEIGHTS_EXCLUDE",
    "MODEL.FROM_SCRATCH",
    "MODEL.ANCHOR_GENERATOR.KMEANS.*",  # of d2c anchors, which fills in the anchors
    "SOLVER.TF32",
    "SOLVER.DETERMINISTIC",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "SOLVER.EPOCHS.*",  # made iterations when the config is read
    "TEST.EXPECTED_RESULTS",
    "INPUT.M??_SIZE_TEST",  # of an evaluation, also one to come where DATASETS.TEST is empty
)


def _is(key: str, *values: Any) -> Callable[[CfgNode], bool]:
    return lambda cfg: value_of(cfg, key) in values


def _on(key: str) -> Callable[[CfgNode], bool]:
    return lambda cfg: bool(value_of(cfg, key))


def _norm_of_body(cfg: CfgNode) -> str:
    return cfg.MODEL.TIMM.NORM if uses_timm(cfg) else cfg.MODEL.RESNETS.NORM


# Keys (patterns) that are read whether or not they act: when they do, in words and as a rule.
_ACT_WITH: tuple[tuple[str, str, Callable[[CfgNode], bool]], ...] = (
    ("SOLVER.WARMUP_FACTOR", "SOLVER.WARMUP_ITERS above 0", _on("SOLVER.WARMUP_ITERS")),
    ("SOLVER.WARMUP_METHOD", "SOLVER.WARMUP_ITERS above 0", _on("SOLVER.WARMUP_ITERS")),
    ("SOLVER.MOMENTUM", "SOLVER.OPTIMIZER SGD", _is("SOLVER.OPTIMIZER", "SGD")),
    ("SOLVER.NESTEROV", "SOLVER.OPTIMIZER SGD", _is("SOLVER.OPTIMIZER", "SGD")),
    (
        "SOLVER.CLIP_GRADIENTS.*",
        "SOLVER.CLIP_GRADIENTS.ENABLED True",
        _on("SOLVER.CLIP_GRADIENTS.ENABLED"),
    ),
    (
        "SOLVER.CLIP_GRADIENTS.NORM_TYPE",
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE norm or full_model",
        _is("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "full_model"),
    ),
    ("MODEL.COMPILE_MODE", "MODEL.COMPILE True", _on("MODEL.COMPILE")),
    ("SOLVER.AMP.DTYPE", "SOLVER.AMP.ENABLED True", _on("SOLVER.AMP.ENABLED")),
    (
        "SOLVER.PLATEAU.*",
        "SOLVER.LR_SCHEDULER_NAME ReduceLROnPlateau",
        _is("SOLVER.LR_SCHEDULER_NAME", "ReduceLROnPlateau"),
    ),
    (
        "SOLVER.STEPS",
        "SOLVER.LR_SCHEDULER_NAME WarmupMultiStepLR",
        _is("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
    ),
    (
        "SOLVER.COSINE_ITERS",
        "SOLVER.LR_SCHEDULER_NAME WarmupCosineLR",
        _is("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
    ),
    (
        "MODEL.RPN.SMOOTH_L1_BETA",
        "MODEL.RPN.BBOX_REG_LOSS_TYPE smooth_l1",
        _is("MODEL.RPN.BBOX_REG_LOSS_TYPE", "smooth_l1"),
    ),
    (
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE smooth_l1",
        _is("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "smooth_l1"),
    ),
    (
        "MODEL.FREEZE.NORM_EVAL",
        "MODEL.FREEZE.MODULES, and norms that learn in them",
        lambda cfg: bool(cfg.MODEL.FREEZE.MODULES) and _norm_of_body(cfg) != "FrozenBN",
    ),
    ("MODEL.TIMM.FILE", "MODEL.TIMM.PRETRAINED True", _on("MODEL.TIMM.PRETRAINED")),
    (
        "MODEL.BACKBONE.NAME",
        "another model than DeepLabV3Segmentor, or with build_timm_fpn_backbone",
        lambda cfg: cfg.MODEL.META_ARCHITECTURE != "DeepLabV3Segmentor" or uses_timm(cfg),
    ),
    ("INPUT.CROP.*", "INPUT.CROP.ENABLED True", _on("INPUT.CROP.ENABLED")),
    (
        "INPUT.SCALE_JITTER.*",
        "INPUT.SCALE_JITTER.ENABLED True",
        _on("INPUT.SCALE_JITTER.ENABLED"),
    ),
    ("INPUT.COPY_PASTE.*", "INPUT.COPY_PASTE.PROB above 0", _on("INPUT.COPY_PASTE.PROB")),
    (
        "INPUT.SMALL_INSTANCE_AREA",
        "an INPUT.SMALL_INSTANCE_WEIGHT other than 1.0",
        lambda cfg: cfg.INPUT.SMALL_INSTANCE_WEIGHT != 1,
    ),
    (
        "INPUT.M??_SIZE_*",
        "INPUT.FIXED_SIZE []",
        lambda cfg: not cfg.INPUT.FIXED_SIZE,
    ),
    (
        "DATALOADER.REPEAT_THRESHOLD",
        "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler",
        _is("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    ),
    (
        "DATALOADER.BALANCE",
        "DATALOADER.SAMPLER_TRAIN ClassBalancedTrainingSampler or SmallObjectTrainingSampler",
        _is(
            "DATALOADER.SAMPLER_TRAIN",
            "ClassBalancedTrainingSampler",
            "SmallObjectTrainingSampler",
        ),
    ),
    (
        "DATALOADER.SMALL_AREA",
        "DATALOADER.SAMPLER_TRAIN SmallObjectTrainingSampler",
        _is("DATALOADER.SAMPLER_TRAIN", "SmallObjectTrainingSampler"),
    ),
    (
        "DATALOADER.RANDOM_SUBSET_RATIO",
        "DATALOADER.SAMPLER_TRAIN RandomSubsetTrainingSampler",
        _is("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"),
    ),
    (
        "MODEL.PANOPTIC_FPN.COMBINE.[!E]*",
        "MODEL.PANOPTIC_FPN.COMBINE.ENABLED True",
        _on("MODEL.PANOPTIC_FPN.COMBINE.ENABLED"),
    ),
    ("TEST.AUG.[!E]*", "TEST.AUG.ENABLED True", _on("TEST.AUG.ENABLED")),
    (
        "TEST.SLIDING_WINDOW.[!E]*",
        "TEST.SLIDING_WINDOW.ENABLED True",
        _on("TEST.SLIDING_WINDOW.ENABLED"),
    ),
    ("TEST.PRECISE_BN.*", "TEST.PRECISE_BN.ENABLED True", _on("TEST.PRECISE_BN.ENABLED")),
    ("TEST.VAL_LOSS_DATASET", "TEST.VAL_LOSS_PERIOD above 0", _on("TEST.VAL_LOSS_PERIOD")),
)


class _Reads(set[str]):
    """Whole names of keys that were read, shared by all copies of a config."""

    def __deepcopy__(self, memo: dict) -> _Reads:
        return self


class _RecordedNode(CfgNode):
    """A section of a config that notes which of its values are read."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if not isinstance(value, CfgNode) and "reads" in self.__dict__:
            self.__dict__["reads"].add(self.__dict__["prefix"] + key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict."""
        return self[key] if key in self else default  # noqa: SIM401 - that would be this method


def recorded(cfg: CfgNode) -> tuple[CfgNode, Collection[str]]:
    """A copy of a config, and the names of its keys that are read from then on.

    Also those read from copies of the copy. To list its values (``items()``, ``dump()``) is not to
    read them.
    """
    reads = _Reads()

    def copy(node: CfgNode, prefix: str) -> _RecordedNode:
        new = _RecordedNode()
        new.__dict__.update(node.__dict__, reads=reads, prefix=prefix)
        for key, value in node.items():
            inner = copy(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else value
            dict.__setitem__(new, key, inner)
        return new

    return copy(cfg.clone(), ""), reads


def idle_keys(cfg: CfgNode, sections: Iterable[str] = ()) -> dict[str, str]:
    """Keys that differ from their default, but act with another setting only: key -> that one."""
    return _idle(cfg, changed_keys(cfg, sections))


def why_without_effect(
    cfg: CfgNode, reads: Collection[str], keys: Collection[str]
) -> dict[str, str]:
    """Those of some keys that have no effect, whatever their values are, each with the reason.

    Args:
        cfg: the config.
        reads: what was read of it while everything was built, see `recorded`.
        keys: to judge.

    Returns:
        Key -> "acts with SOLVER.WARMUP_ITERS above 0 only", "is not read by GeneralizedRCNN" or the
        like.
    """
    why = {key: _reader(cfg, key) for key in _unread(reads, keys)}
    return why | {key: f"acts with {needed} only" for key, needed in _idle(cfg, keys).items()}


def check_key_effects(
    cfg: CfgNode,
    reads: Collection[str],
    *,
    allowed: bool | Collection[str] = False,
    sections: Iterable[str] = (),
) -> None:
    """Refuse keys without effect.

    Args:
        cfg: the config.
        reads: what was read of it while everything was built, see `recorded`.
        allowed: True, or the keys, that only get a warning; so does a mask head where MODEL.MASK_ON
            is False, and a ResNet where MODEL.BACKBONE.NAME is another body.
        sections: first parts of the names to judge; empty for all.

    Raises:
        ConfigError: such keys, each with why it does not act.
    """
    keys = changed_keys(cfg, sections)
    if not cfg.DATASETS.TEST:  # for a later evaluation
        keys = [key for key in keys if not key.startswith("TEST.")]
    why = why_without_effect(cfg, reads, keys)
    refused = []
    for key, reason in why.items():
        line = f"{key} {value_of(cfg, key)!r} {reason}"
        if allowed is True or (allowed and key in allowed) or _is_switched_off(cfg, key):
            logger.warning("without effect: %s", line)
        else:
            refused.append(line)
    if refused:
        raise ConfigError.of_many(refused, "set without effect; leave out, or --allow-unused")


def changed_keys(cfg: CfgNode, sections: Iterable[str] = ()) -> list[str]:
    """Keys with another value than the default. One that is empty asks for nothing.

    Args:
        cfg: the config.
        sections: first parts of their names; empty for all.
    """
    default, chosen = dict(leaves(get_cfg())), set(sections)
    return [
        key
        for key, value in leaves(cfg)
        if (not chosen or key.partition(".")[0] in chosen)
        and value not in ((), [], "")
        and (key not in default or plain(default[key]) != plain(value))
    ]


def _unread(reads: Collection[str], keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key not in reads and not _acts_elsewhere(key)]


def _idle(cfg: CfgNode, keys: Iterable[str]) -> dict[str, str]:
    return {
        key: needed
        for key in keys
        for pattern, needed, acts in _ACT_WITH
        if fnmatch.fnmatchcase(key, pattern) and not acts(cfg)
    }


def _is_switched_off(cfg: CfgNode, key: str) -> bool:
    """Whether a key belongs to a part that a config may leave out by one switch of its own."""
    if key.startswith("MODEL.RESNETS."):
        return uses_timm(cfg)
    return key.startswith("MODEL.ROI_MASK_HEAD.") and not cfg.MODEL.MASK_ON


def _acts_elsewhere(key: str) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in _ACT_ELSEWHERE)


def _reader(cfg: CfgNode, key: str) -> str:
    """Who does not read a key: the component that its section chooses, else the whole model."""
    names = {
        "MODEL.BACKBONE": cfg.MODEL.BACKBONE.NAME,
        "MODEL.TIMM": cfg.MODEL.BACKBONE.NAME,
        "MODEL.RPN": cfg.MODEL.PROPOSAL_GENERATOR.NAME,
        "MODEL.SEM_SEG_HEAD": cfg.MODEL.SEM_SEG_HEAD.NAME,
        "MODEL.ROI_HEADS": cfg.MODEL.ROI_HEADS.NAME,
        "MODEL.ROI_BOX_HEAD": cfg.MODEL.ROI_BOX_HEAD.NAME,
        "MODEL.ROI_MASK_HEAD": cfg.MODEL.ROI_MASK_HEAD.NAME,
        "MODEL.ANCHOR_GENERATOR": cfg.MODEL.ANCHOR_GENERATOR.NAME,
    }
    architecture = cfg.MODEL.META_ARCHITECTURE
    name = names.get(key.rpartition(".")[0], "")
    section = key.partition(".")[0]
    if section == "MODEL":
        return f"is not read by {architecture}" + (f" with {name}" if name else "")
    if section == "SOLVER":
        return f"is not read by {cfg.SOLVER.OPTIMIZER} with {cfg.SOLVER.LR_SCHEDULER_NAME}"
    return f"is not read by anything of this run of {architecture}"

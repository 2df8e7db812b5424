"""What timm knows of the weights of a network, and where they come from.

Nothing here opens a socket; timm does, for MODEL.TIMM.PRETRAINED without MODEL.TIMM.FILE.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor

from d2_cityscapes.dependencies import import_extra
from d2_cityscapes.errors import D2CityscapesError, first_few, nearest
from d2_cityscapes.tensor_files import read_tensor_file

__all__ = [
    "TimmWeights",
    "begins_with_timm",
    "import_timm",
    "log_licence",
    "read_weights",
    "uses_timm",
    "weights_of",
    "without_timm_weights",
]

logger = logging.getLogger(__name__)

_BUILDERS = ("build_timm_fpn_backbone", "build_seamless_timm_fpn_backbone")
_NAMES = ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
# Nothing but to name the authors is asked for.
_FREE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")


@dataclass(frozen=True)
class TimmWeights:
    """Of a network's weights, whether they are loaded or not.

    Attributes:
        name: of the network, with the tag of the weights where they have one.
        mean, std: of the pictures that they were trained on, RGB, of pixels from 0 to 255.
        licence: "" where timm does not tell.
        place: on the Hub, or an address; "" for weights that there are not.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    place: str


def uses_timm(cfg: CfgNode) -> bool:
    """Whether the backbone is one of timm."""
    return cfg.MODEL.BACKBONE.NAME in _BUILDERS


def begins_with_timm(cfg: CfgNode) -> bool:
    """Whether a model of this config is built with timm's weights: MODEL.WEIGHTS are in no need."""
    return uses_timm(cfg) and bool(cfg.MODEL.TIMM.PRETRAINED) and not cfg.MODEL.WEIGHTS


def without_timm_weights(cfg: CfgNode) -> CfgNode:
    """The config of the same model, for where its weights come from elsewhere, or from nowhere."""
    if not (uses_timm(cfg) and cfg.MODEL.TIMM.PRETRAINED):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.freeze()
    return cfg


def import_timm(needed_by: str = "MODEL.BACKBONE.NAME build_timm_fpn_backbone") -> Any:
    """The package, or one line that names the extra."""
    return import_extra("timm", needed_by)


def weights_of(name: str) -> TimmWeights:
    """What timm's ``pretrained_cfg`` says.

    Args:
        name: MODEL.TIMM.NAME.

    Raises:
        D2CityscapesError: there is no such network, or no weights of this tag.
    """
    timm = import_timm()
    network, _, tag = name.partition(".")
    if not network:
        raise D2CityscapesError(
            "MODEL.TIMM.NAME is empty: name a network of timm.list_models(), e.g. convnext_tiny"
        )
    if ":" in name or "/" in name:
        raise D2CityscapesError(
            f"MODEL.TIMM.NAME {name!r}: use a name of timm.list_models(); weights of elsewhere go "
            "into MODEL.TIMM.FILE"
        )
    if not timm.is_model(network):
        raise D2CityscapesError(
            f"MODEL.TIMM.NAME {name!r}: timm {timm.__version__} has no such network"
            f"{nearest(network, timm.list_models())}"
        )
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{network}.*")
        raise D2CityscapesError(
            f"MODEL.TIMM.NAME {name!r}: no weights of this tag; there are {first_few(tags, 12)}"
        ) from error
    found = found or timm.models.PretrainedCfg()
    tag = tag or found.tag or ""
    place = f"hf-hub {found.hf_hub_id}" if found.hf_hub_id else (found.url or "")
    return TimmWeights(
        name=f"{network}.{tag}" if tag else network,
        mean=tuple(255 * value for value in found.mean),
        std=tuple(255 * value for value in found.std),
        licence=found.license or "",
        place=str(place),
    )


def log_licence(weights: TimmWeights, file: str = "") -> None:
    """Say whose weights a training begins with, as a warning where not everything is allowed."""
    place = file or weights.place
    if weights.licence in _FREE:
        logger.info("%s: timm's weights, licence %s, from %s", weights.name, weights.licence, place)
        return
    logger.warning(
        "%s: timm's weights, licence %s, from %s: read it before you use or pass them on",
        weights.name,
        weights.licence or "not told",
        place,
    )


def read_weights(file: str, weights: TimmWeights) -> dict[str, Tensor]:
    """The tensors of MODEL.TIMM.FILE, by timm's names.

    Args:
        file: of tensors, or a folder with one and with the config.json that timm writes beside it.
        weights: which they should be.

    Raises:
        D2CityscapesError: no such file, damaged, no weights, or by its config.json those of another
            network or of other pictures.
    """
    path = Path(file)
    if path.is_dir():
        _check_folder(path, weights)
        found = [path / name for name in _NAMES if (path / name).is_file()]
        if not found:
            raise D2CityscapesError(f"MODEL.TIMM.FILE {path}: has no {' or '.join(_NAMES[:2])}")
        path = found[0]
    if not path.is_file():
        raise D2CityscapesError(f"MODEL.TIMM.FILE {path}: no such file")
    content = read_tensor_file(path)
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = dict(content) if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise D2CityscapesError(f"MODEL.TIMM.FILE {path}: holds no state dict of a network")
    return tensors


def _check_folder(folder: Path, weights: TimmWeights) -> None:
    """Hold the config.json of a folder of the Hub against what was named."""
    path = folder / "config.json"
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        about = config.get("pretrained_cfg", config)
        found = {key: about.get(key) for key in ("mean", "std")}
        name = config.get("architecture", "")
    except (ValueError, AttributeError) as error:
        raise D2CityscapesError(f"MODEL.TIMM.FILE {path}: not a config of timm") from error
    network = weights.name.partition(".")[0]
    if name and name != network:
        raise D2CityscapesError(f"MODEL.TIMM.FILE {path}: of {name}, not {network}: set NAME to it")
    for key, value in found.items():
        wanted = [round(x / 255, 4) for x in getattr(weights, key)]
        if value is not None and [round(x, 4) for x in value] != wanted:
            raise D2CityscapesError(
                f"MODEL.TIMM.FILE {path}: pictures of {key} {value}, where {weights.name} has "
                f"{wanted}: name the tag whose weights these are in MODEL.TIMM.NAME"
            )

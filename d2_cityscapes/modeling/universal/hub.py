"""MODEL.WEIGHTS as a folder of the Hugging Face Hub, or a name there: network, pixels, weights.

What is on this machine is used without asking anybody: a folder, or a name that the Hub's cache
has. Only another name is fetched.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.universal.dinov2 import eomt_from_dinov2
from d2_cityscapes.modeling.universal.network import (
    IDLE_NORM,
    NETWORKS,
    import_transformers,
    quiet_transformers,
    settings_of,
)

__all__ = ["hub_classes", "hub_config", "hub_weights", "is_hub", "resolve_hub"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CONFIG, _PIXELS = "config.json", "preprocessor_config.json"
_FILES = (".pth", ".pkl", ".pt", ".pyth", ".safetensors")  # that are not there
# Network -> model_type of backbones that it begins with -> transformers' class of them.
_BACKBONES = {
    "mask2former": {"resnet": "ResNetBackbone", "swin": "SwinBackbone"},
    "eomt": {
        "dinov2_with_registers": "Dinov2WithRegistersModel",
        "dinov2": "Dinov2Model",
    },
}
_ENCODER = "network.model.pixel_level_module.encoder."


def is_hub(weights: str) -> bool:
    """Whether MODEL.WEIGHTS is a folder or a name of the Hub, not a file or an address."""
    path = Path(weights)
    if not weights or path.is_file():
        return False
    if path.is_dir():
        return (path / _CONFIG).is_file()
    return _NAME.fullmatch(weights) is not None and path.suffix not in _FILES


def _folder(weights: str) -> Path:
    """Fetched if it is a name that is not in the cache."""
    if Path(weights).is_dir():
        return Path(weights)
    import_transformers()
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors"]
    try:
        return Path(snapshot_download(weights, allow_patterns=wanted, local_files_only=True))
    except Exception:  # of its cache, in one of many kinds
        logger.info("%s: not in the cache of the Hub, fetching it", weights)
    try:
        return Path(snapshot_download(weights, allow_patterns=wanted))
    except Exception as error:  # of the network, or of the Hub
        reason = " ".join(str(error).split())[:200]
        raise D2CityscapesError(
            f"MODEL.WEIGHTS {weights}: no such file or folder, and the Hub does not give it "
            f"({type(error).__name__}: {reason}); without a network, download it elsewhere and "
            "give the folder"
        ) from error


def hub_config(weights: str) -> Path:
    """The config.json of what `is_hub` takes, in the folder with the weights.

    Raises:
        D2CityscapesError: no transformers, or it cannot be fetched.
    """
    return _folder(weights) / _CONFIG


def resolve_hub(cfg: CfgNode) -> CfgNode:
    """The config with the network of MODEL.WEIGHTS written out, where these are of the Hub.

    So config.yaml needs them no longer. Where MODEL.UNIVERSAL.NAME is given, the network is that of
    the config; a folder of a backbone alone, such as "microsoft/resnet-50", needs it.

    Args:
        cfg: frozen or not; stays as it is.

    Raises:
        D2CityscapesError: files that cannot be used, or pixels that would be brought to another
            scale than these weights know.
    """
    model = cfg.MODEL
    if model.META_ARCHITECTURE != "UniversalSegmentor" or not is_hub(model.WEIGHTS):
        return cfg
    folder = _folder(model.WEIGHTS)
    _check_pixels(cfg, folder)
    if model.UNIVERSAL.NAME:
        return cfg
    config = _config(folder)
    if config.model_type not in NETWORKS:
        raise D2CityscapesError(
            f"MODEL.WEIGHTS {model.WEIGHTS}: a {config.model_type}; UniversalSegmentor takes "
            f"{' or '.join(NETWORKS)}, or a backbone for what MODEL.UNIVERSAL.NAME names"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.UNIVERSAL.NAME = config.model_type
    cfg.MODEL.UNIVERSAL.CONFIG = CfgNode(settings_of(config), new_allowed=True)
    cfg.freeze()
    return cfg


def _config(folder: Path) -> Any:
    with quiet_transformers():
        try:
            return import_transformers().AutoConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of whatever kind its checks are
            reason = " ".join(str(error).split())[:200]
            raise D2CityscapesError(f"{folder / _CONFIG}: cannot be used ({reason})") from error


def _check_pixels(cfg: CfgNode, folder: Path) -> None:
    """Hold MODEL.PIXEL_MEAN and PIXEL_STD against what the folder says."""
    try:
        known = json.loads((folder / _PIXELS).read_text())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise D2CityscapesError(f"{folder / _PIXELS}: cannot be read ({error})") from error
    if not known.get("do_normalize", True):
        return
    scale = 1 / known.get("rescale_factor", 1 / 255) if known.get("do_rescale", True) else 1.0
    for key, field in (("PIXEL_MEAN", "image_mean"), ("PIXEL_STD", "image_std")):
        if field not in known:
            continue
        wanted = np.atleast_1d(np.asarray(known[field], dtype=float)) * scale
        wanted = np.broadcast_to(wanted, 3)
        if not np.allclose(cfg.MODEL[key], wanted, rtol=1e-3):
            shown = [round(value, 3) for value in wanted.tolist()]
            raise D2CityscapesError(
                f"MODEL.{key} {list(cfg.MODEL[key])}: {cfg.MODEL.WEIGHTS} was trained with {shown}"
            )


def hub_weights(folder: Path, network: Any) -> dict[str, Tensor]:
    """The tensors of a folder under the names of a `UniversalSegmentor`.

    Transformers reads them, as it knows what they were called before. What the folder's own config
    has, but not its file, is left out.

    Args:
        folder: of a whole network, or of a backbone.
        network: of the segmentor that they are for.

    Raises:
        D2CityscapesError: another network, or files that cannot be read.
    """
    found, ours = _config(folder).model_type, network.config.model_type
    if found == ours:
        tensors = _tensors(folder, NETWORKS[found], ignore_mismatched_sizes=True)
        prefix = "network."
    elif found not in _BACKBONES[ours]:
        raise D2CityscapesError(
            f"{folder}: a {found}; a {ours} begins with weights of its own, or of a backbone: "
            f"{' or '.join(_BACKBONES[ours])}"
        )
    elif ours == "eomt":
        rows = [side // network.config.patch_size for side in 2 * [network.config.image_size]]
        tensors = eomt_from_dinov2(
            _tensors(folder, _BACKBONES[ours][found]),
            patch_size=network.config.patch_size,
            grid=(rows[0], rows[1]),
        )
        tensors["attn_mask_probs"] = network.attn_mask_probs.clone()  # which nothing trains
        prefix = "network."
    else:
        stages = network.config.backbone_config.out_features
        tensors = _tensors(folder, _BACKBONES[ours][found], out_features=stages)
        prefix = _ENCODER
    return {
        prefix + name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("criterion.") and f"{IDLE_NORM}.layernorm." not in prefix + name
    }


def _tensors(folder: Path, kind: str, **options: Any) -> dict[str, Tensor]:
    """Those that a class of transformers reads from a folder, under its names."""
    with quiet_transformers():
        try:
            network, report = getattr(import_transformers(), kind).from_pretrained(
                str(folder),
                local_files_only=True,
                output_loading_info=True,
                dtype="float32",
                **options,
            )
        except Exception as error:  # of its file formats, in one of many kinds
            reason = " ".join(str(error).split())[:200]
            raise D2CityscapesError(f"{folder}: cannot be read as weights ({reason})") from error
    absent = {*report["missing_keys"]}
    return {name: x for name, x in network.state_dict().items() if name not in absent}


def hub_classes(folder: Path) -> Mapping[str, Any] | None:
    """The class record of the weights, see `d2_cityscapes.labels.record`; None where unknown."""
    config = _config(folder)
    names = [config.id2label[number] for number in sorted(config.id2label)]
    if config.model_type not in NETWORKS or all(n.startswith("LABEL_") for n in names):
        return None
    return {"table": str(folder), "classes": names}

"""The networks of Hugging Face transformers that a `UniversalSegmentor` is made of.

Shape letters: N images of h, w pixels; Q queries; L tokens of a transformer.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from d2_cityscapes.dependencies import import_extra
from d2_cityscapes.errors import D2CityscapesError, nearest
from d2_cityscapes.modeling.universal.eomt import eomt_layers, eomt_stages
from d2_cityscapes.modeling.universal.losses import Prediction, SetLoss

__all__ = [
    "IDLE_NORM",
    "NETWORKS",
    "build_network",
    "divisor",
    "import_transformers",
    "layers_of",
    "network_loss",
    "quiet_transformers",
    "settings_of",
    "stages_of",
]

# MODEL.UNIVERSAL.NAME, which is transformers' model_type -> its class.
NETWORKS = {
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "eomt": "EomtForUniversalSegmentation",
}
_NEEDED_BY, _OLDEST = "MODEL.META_ARCHITECTURE UniversalSegmentor", (5, 24)
IDLE_NORM = "pixel_level_module.encoder.swin"
_KEY = "MODEL.UNIVERSAL.CONFIG"
# What transformers writes into every config.json, and what follows from the data here.
_NOT_SETTINGS = frozenset(
    {"architectures", "auto_map", "dtype", "id2label", "label2id", "model_type", "num_labels"}
    | {"problem_type", "return_dict", "torch_dtype", "transformers_version", "_name_or_path"}
    | {"output_attentions", "output_hidden_states", "output_auxiliary_logits", "stage_names"}
    | {"_attn_implementation_autoset", "out_indices"}
)


def import_transformers() -> Any:
    """The module.

    Raises:
        D2CityscapesError: it is not installed, or too old.
    """
    transformers = import_extra("transformers", _NEEDED_BY)
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version < _OLDEST:
        raise D2CityscapesError(
            f"{_NEEDED_BY} needs transformers {'.'.join(map(str, _OLDEST))} or later, whose names "
            f"its weights have; {transformers.__version__} is installed"
        )
    return transformers


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its bars, and without what it logs: of a ResNet, that it may not fit Mask2Former."""
    log = import_transformers().logging
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()


def build_network(name: str, values: Mapping[str, Any], num_classes: int) -> nn.Module:
    """A network of random weights.

    Args:
        name: MODEL.UNIVERSAL.NAME.
        values: MODEL.UNIVERSAL.CONFIG, as plain values.
        num_classes: without "no object".

    Raises:
        D2CityscapesError: no transformers, another name, or settings that it does not know.
    """
    transformers = import_transformers()
    if name not in NETWORKS:
        raise D2CityscapesError(
            f"MODEL.UNIVERSAL.NAME {name!r}: use {' or '.join(NETWORKS)}"
            + nearest(name, NETWORKS)
            + (_NO_ONEFORMER if name == "oneformer" else "")
        )
    with quiet_transformers():
        try:
            config = transformers.AutoConfig.for_model(name, **values, num_labels=num_classes)
        except Exception as error:  # of whatever kind its checks are
            reason = " ".join(str(error).split())
            raise D2CityscapesError(f"{_KEY} of {name}: {reason}") from error
        _check_names(config, values, _KEY)
        config.use_auxiliary_loss = True  # without it transformers' own forward fails
        try:
            network = getattr(transformers, NETWORKS[name])(config)
        except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
            reason = " ".join(str(error).split())
            raise D2CityscapesError(f"{_KEY}: {name} cannot be built: {reason}") from error
    del network.criterion  # `SetLoss` stands for it
    for name, module in network.named_modules():
        if name.endswith(IDLE_NORM):  # of a Swin's last map, from which nothing follows
            module.layernorm = nn.Identity()
    return network


_NO_ONEFORMER = (
    "; OneFormer is not offered, as it is told its task in text, for which its network asks for "
    "the vocabulary of CLIP and, in training, a text for each object"
)


def _check_names(config: Any, values: Mapping[str, Any], where: str) -> None:
    """Refuse settings that transformers would keep without a word, and not use."""
    known = {field.name for field in dataclasses.fields(config)} - _NOT_SETTINGS
    for key, value in values.items():
        if key == "model_type":
            continue
        inner = getattr(config, key, None)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            _check_names(inner, value, f"{where}.{key}")
        elif key not in known | {"out_features"}:
            raise D2CityscapesError(
                f"{where}.{key}: {config.model_type} of transformers has no such setting"
                f"{nearest(key, known)}"
            )


def settings_of(config: Any) -> dict[str, Any]:
    """What differs from the defaults in a config of transformers, as MODEL.UNIVERSAL.CONFIG."""
    default = type(config)()
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        key, value = field.name, getattr(config, field.name)
        if key in _NOT_SETTINGS or key.startswith("_"):
            continue
        if dataclasses.is_dataclass(value) and hasattr(value, "model_type"):
            found[key] = {"model_type": value.model_type, **settings_of(value)}
            features = getattr(value, "out_features", None)
            if features:
                found[key]["out_features"] = list(features)
        elif value != getattr(default, key, None) and isinstance(
            value, bool | int | float | str | list | tuple
        ):
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def network_loss(network: Any) -> SetLoss:
    """Its losses, with the weights of its config."""
    config = network.config
    return SetLoss(
        class_weight=config.class_weight,
        mask_weight=config.mask_weight,
        dice_weight=config.dice_weight,
        no_object_weight=config.no_object_weight,
        num_points=config.train_num_points,
        oversample_ratio=config.oversample_ratio,
        importance_sample_ratio=config.importance_sample_ratio,
    )


def divisor(network: Any) -> int:
    """Height and width of a batch have to be multiples of this, in pixels."""
    if network.config.model_type == "eomt":
        return network.config.patch_size
    return max(network.config.feature_strides)


def layers_of(network: Any) -> Callable[..., list[Prediction]]:
    """What gives the predictions of all layers of a network, the last at the end.

    Called with the network, normalised images (N, 3, h, w), and the part of the queries that mask
    their attention in each block, which EoMT alone asks for.
    """
    return eomt_layers if network.config.model_type == "eomt" else _mask2former_layers


def _mask2former_layers(
    network: Any, images: Tensor, masked_parts: list[float] | None = None
) -> list[Prediction]:
    found = network(images, output_auxiliary_logits=True)
    return [
        Prediction(own["class_queries_logits"], own["masks_queries_logits"])
        for own in found.auxiliary_logits
    ] + [Prediction(found.class_queries_logits, found.masks_queries_logits)]


def stages_of(network: Any) -> list[nn.Module]:
    """The parts that MODEL.BACKBONE.ACTIVATION_CHECKPOINTING computes again, one after another.

    Of Mask2Former the stages of the backbone and the layers of the pixel decoder, which keep the
    most; of EoMT all layers.
    """
    if network.config.model_type == "eomt":
        return eomt_stages(network)
    pixels = network.model.pixel_level_module
    # ResNetStage, SwinStage, ...: what holds them differs
    stages = [m for m in pixels.encoder.modules() if type(m).__name__.endswith("Stage")]
    return [*stages, *pixels.decoder.encoder.layers]

"""A trained model from what a training left, in one line."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from d2_cityscapes import register_components
from d2_cityscapes.engine.checkpoints.weights_file import read_about
from d2_cityscapes.engine.checks.config import check_model_config
from d2_cityscapes.engine.prediction.predictor import Predictor
from d2_cityscapes.engine.setup import ConfigError, check_weights_file, load_config
from d2_cityscapes.files import expanded
from d2_cityscapes.run_folder import CONFIG, FINAL, portable

__all__ = ["load", "model_config"]

Model = str | Path | tuple[str | Path, str | Path]

# What a folder is looked through for, in this order: of a training, then of `to-detectron2`.
_WEIGHTS = (str(portable(Path(FINAL))), FINAL, "model.pth")


def load(model: Model, *, opts: Sequence[str] = ()) -> Predictor:
    """A trained model that takes pictures.

        see = d2c.load("output/stage3")
        see(image)["instances"]     # (H, W, 3) uint8 RGB to the output of a Detectron2 model

    Pictures are resized and normalised as the config says; what is found has the picture's size.

    Args:
        model: the folder of a training (config.yaml with model_final.safetensors or .pth), a
            .safetensors of a training, which has its config in it, other weights beside their
            config.yaml, or (config, weights).
        opts: KEY VALUE overrides of the config, e.g. ("MODEL.DEVICE", "cpu").

    Raises:
        D2CityscapesError: nothing of that kind, or a config and weights that do not fit.
    """
    return Predictor(model_config(model, opts))


def model_config(model: Model, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a trained model, checked, with its MODEL.WEIGHTS; see `load`.

    MODEL.WEIGHTS among the overrides wins.
    """
    register_components()
    if isinstance(model, tuple):
        config, weights = model
        cfg = load_config(config, _opts(weights, opts), train=False)
    else:
        path = Path(expanded(str(model)))
        weights = _weights(path)
        text = _config_in(weights)
        if text:
            cfg = _from_text(text, weights, opts)
        else:
            cfg = load_config(_config_beside(weights), _opts(weights, opts), train=False)
    check_model_config(cfg)
    check_weights_file(cfg)
    return cfg


def _opts(weights: str | Path, opts: Sequence[str]) -> list[str]:
    return [*(["MODEL.WEIGHTS", str(weights)] if weights else []), *opts]


def _weights(path: Path) -> Path:
    """Of a folder, or itself."""
    if not path.exists():
        raise ConfigError(f"{path}: no such model; name the folder of a training, or its weights")
    if not path.is_dir():
        return path
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise ConfigError(
        f"{path}: has no {' or '.join(_WEIGHTS)}, so that its training has not ended; name the "
        "checkpoint that you mean"
    )


def _config_in(weights: Path) -> str:
    """YAML that the weights have with them; "" where a config.yaml beside them says it."""
    if not _is_portable(weights) or weights.with_name(CONFIG).is_file():
        return ""
    try:
        return read_about(weights).config
    except OSError as error:
        raise ConfigError(f"{weights}: cannot be read ({error.strerror})") from error


def _config_beside(weights: Path) -> Path:
    config = weights.with_name(CONFIG)
    if not config.is_file():
        what = "says nothing of its config, and there is" if _is_portable(weights) else "there is"
        raise ConfigError(
            f"{weights}: {what} no {config} beside it; name the config as well "
            "(--config-file FILE MODEL.WEIGHTS FILE, in Python (config, weights))"
        )
    return config


def _is_portable(weights: Path) -> bool:
    return weights == portable(weights)


def _from_text(text: str, weights: Path, opts: Sequence[str]) -> CfgNode:
    """The config in a file of weights, which may be anybody's: it opens no other file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG
        path.write_text(text)
        try:
            if "_BASE_" in text:
                raise ConfigError(f"{path}: names another file (_BASE_)")
            return load_config(path, _opts(weights, opts), train=False)
        except ConfigError as error:
            where = f"{weights}: its config"
            raise ConfigError(str(error).replace(str(path), where)) from error

"""A trained model from what a training left, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from d2_cityscapes import register_components
from d2_cityscapes.engine.checks.config import check_model_config
from d2_cityscapes.engine.prediction.predictor import Predictor
from d2_cityscapes.engine.setup import ConfigError, check_weights_file, load_config
from d2_cityscapes.files import expanded
from d2_cityscapes.run_folder import CONFIG, FINAL

__all__ = ["load", "model_config"]

Model = str | Path | tuple[str | Path, str | Path]

# What a folder is looked through for, in this order: of a training, then of `to-detectron2`.
_WEIGHTS = (FINAL, "model.pth")


def load(model: Model, *, opts: Sequence[str] = ()) -> Predictor:
    """A trained model that takes pictures.

        see = d2c.load("output/stage3")
        see(image)["instances"]     # (H, W, 3) uint8 RGB to the output of a Detectron2 model

    Pictures are resized and normalised as the config says; what is found has the picture's size.

    Args:
        model: the folder of a training (config.yaml and model_final.pth), a file of weights beside
            its config.yaml, or (config, weights).
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
    config, weights = model if isinstance(model, tuple) else _files(Path(expanded(str(model))))
    given = ["MODEL.WEIGHTS", str(weights)] if weights else []
    cfg = load_config(config, [*given, *opts], train=False)
    check_model_config(cfg)
    check_weights_file(cfg)
    return cfg


def _files(path: Path) -> tuple[Path, Path]:
    """Config and weights of a folder, or of weights with a config beside them."""
    if not path.exists():
        raise ConfigError(f"{path}: no such model; name the folder of a training, or its weights")
    folder = path if path.is_dir() else path.parent
    config = folder / CONFIG
    if not config.is_file():
        raise ConfigError(
            f"{path}: there is no {config} beside the weights; name the config as well "
            "(--config-file FILE MODEL.WEIGHTS FILE, in Python (config, weights))"
        )
    if not path.is_dir():
        return config, path
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return config, folder / name
    raise ConfigError(
        f"{path}: has no {' or '.join(_WEIGHTS)}, so that its training has not ended; name the "
        "checkpoint that you mean"
    )

"""From a config file and command-line overrides to a checked, frozen config."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from d2_cityscapes.config import get_cfg
from d2_cityscapes.config_files import config_files
from d2_cityscapes.data.folds import register_folds
from d2_cityscapes.data.register import has_truth, not_registered
from d2_cityscapes.data.shard_folders import register_shard_folders
from d2_cityscapes.data.training_set import training_images
from d2_cityscapes.engine.devices import unusable_gpu, why_no_device
from d2_cityscapes.errors import D2CityscapesError, nearest
from d2_cityscapes.files import expanded
from d2_cityscapes.modeling.backbones.pixels import settle_pixels
from d2_cityscapes.modeling.backbones.weights import begins_with_timm, uses_timm
from d2_cityscapes.modeling.universal.hub import is_hub
from d2_cityscapes.shipped import find_config, nearest_config

__all__ = [
    "LENGTHS",
    "ConfigError",
    "check_datasets",
    "check_gpus",
    "check_start",
    "check_weights_file",
    "images_per_step",
    "load_config",
    "validation_dataset",
]

logger = logging.getLogger(__name__)

# Lengths of a training in iterations. SOLVER.EPOCHS.<last part> sets them, and
# SOLVER.REFERENCE_WORLD_SIZE scales them.
LENGTHS = (
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.COSINE_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "TEST.VAL_LOSS_PERIOD",
)


class ConfigError(D2CityscapesError):
    """A config file, key or value that cannot be used."""


def load_config(
    config_file: str | Path = "", opts: Sequence[str] = (), *, train: bool = True
) -> CfgNode:
    """Read a config, apply overrides, and settle what depends on data and machine.

    Lengths in SOLVER.EPOCHS become iterations, for which DATASETS.TRAIN is read; without any, no
    dataset is. E epochs are E * images / (IMS_PER_BATCH * ACCUMULATE_STEPS), rounded up: 4 epochs
    of 2975 images are 2975 iterations of 4. The images are those that train, see `training_images`:
    after FILTER_EMPTY_ANNOTATIONS, where it acts, and RANDOM_SUBSET_RATIO, each counted once
    whatever the sampler repeats.

    MODEL.PIXEL_MEAN and PIXEL_STD become those of a timm network's weights, see `settle_pixels`.

    Without a GPU, MODEL.DEVICE "cuda" becomes "cpu" and SOLVER.AMP.ENABLED, which was made for the
    GPU, False; each with a logged line. A GPU that PyTorch cannot use is an error, see
    `unusable_gpu`. Where MODEL.DEVICE says "cpu" it stays as it is.

    Args:
        config_file: YAML file, with ``_BASE_`` as in Detectron2, here or among the shipped ones
            (see `find_config`); "" for the defaults alone.
        opts: KEY VALUE pairs. An iteration key given here wins over the file's SOLVER.EPOCHS.
        train: False leaves SOLVER.EPOCHS as it is, for use where DATASETS.TRAIN is missing.

    Returns:
        A frozen config.

    Raises:
        ConfigError: missing file, unknown key (with the nearest names), a value of a wrong type, or
            a MODEL.DEVICE that cannot be used.
        D2CityscapesError: lengths in epochs of a dataset that cannot be read.
    """
    register_shard_folders()  # those that were packed since the start, too
    cfg = get_cfg()
    if config_file:
        config_file = find_config(config_file)
        if not config_file.is_file():
            raise ConfigError(f"{config_file}: no such config file{nearest_config(config_file)}")
        # First, as what they hold is bounded there alone.
        _merge(cfg, config_file, lambda: config_files(config_file))
        # Detectron2's default would run the code that a file with Python tags names.
        _merge(cfg, config_file, lambda: cfg.merge_from_file(str(config_file), allow_unsafe=False))
    opts = list(opts)
    if len(opts) % 2:
        raise ConfigError(f"overrides are KEY VALUE pairs; {opts[-1]!r} has no value")
    _merge(cfg, "command line", lambda: cfg.merge_from_list(opts))
    _expand_paths(cfg)
    register_folds([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, cfg.TEST.VAL_LOSS_DATASET])
    if train:
        _settle_lengths(cfg, opts[::2])
    _settle_device(cfg)
    cfg = settle_pixels(cfg)
    cfg.freeze()
    return cfg


def check_weights_file(cfg: CfgNode) -> None:
    """Refuse a MODEL.WEIGHTS path that does not exist, before anything expensive starts.

    URLs and Detectron2's own schemes (``detectron2://``) are left to its path manager.
    """
    path = cfg.MODEL.WEIGHTS
    if cfg.MODEL.META_ARCHITECTURE == "UniversalSegmentor" and is_hub(path):
        return
    if path and "://" not in path and not Path(path).is_file():
        raise ConfigError(f"MODEL.WEIGHTS {path}: no such file")


def check_start(cfg: CfgNode) -> None:
    """Refuse to begin with a random network that nobody has asked for.

    Raises:
        ConfigError: there are no MODEL.WEIGHTS, nor those of MODEL.TIMM.PRETRAINED, and
            MODEL.FROM_SCRATCH does not say why.
    """
    if cfg.MODEL.WEIGHTS or cfg.MODEL.FROM_SCRATCH or begins_with_timm(cfg):
        return
    stays = ""
    if cfg.MODEL.FREEZE.MODULES:
        stays = f", of which {', '.join(cfg.MODEL.FREEZE.MODULES)} would stay so"
    elif not uses_timm(cfg) and cfg.MODEL.RESNETS.NORM == "FrozenBN":
        stays = ", with norms that never train"
    timm = ", take those of timm by MODEL.TIMM.PRETRAINED True" if uses_timm(cfg) else ""
    raise ConfigError(
        f"MODEL.WEIGHTS is empty: training would begin with a random network{stays}; name the "
        f"weights to begin from{timm}, or say that it is meant by --from-scratch "
        "(MODEL.FROM_SCRATCH True)"
    )


def check_datasets(cfg: CfgNode, *, train: bool) -> None:
    """Load every dataset of the config once, so that a missing one stops the run at its start.

    Raises:
        ConfigError: a name that is not registered, or no name at all.
        ShardError: a dataset whose shards are missing or damaged.
    """
    names = [*cfg.DATASETS.TEST]
    if train:
        names += _training_names(cfg)
        if cfg.TEST.VAL_LOSS_PERIOD > 0:
            names.append(validation_dataset(cfg))
    _check_registered(names)
    for name in dict.fromkeys(names):
        DatasetCatalog.get(name)
    if train and cfg.TEST.VAL_LOSS_PERIOD > 0 and not has_truth(validation_dataset(cfg)):
        raise ConfigError(
            f"TEST.VAL_LOSS_DATASET: {validation_dataset(cfg)} has no annotations to compute "
            "losses from; name another dataset"
        )
    for name in cfg.DATASETS.TRAIN if train else ():
        if not has_truth(name):
            raise ConfigError(f"DATASETS.TRAIN: {name} has no annotations to train on")


def validation_dataset(cfg: CfgNode) -> str:
    """The dataset of the validation losses: TEST.VAL_LOSS_DATASET, else the first of DATASETS.TEST.

    Raises:
        ConfigError: there is neither.
    """
    names = [name for name in (cfg.TEST.VAL_LOSS_DATASET, *cfg.DATASETS.TEST) if name]
    if not names:
        raise ConfigError(
            f"TEST.VAL_LOSS_PERIOD {cfg.TEST.VAL_LOSS_PERIOD}: name a dataset in "
            "TEST.VAL_LOSS_DATASET or DATASETS.TEST"
        )
    return names[0]


def images_per_step(cfg: CfgNode) -> int:
    """Images of all ranks in an optimizer step."""
    return cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE_STEPS


def check_gpus(num_gpus: int) -> None:
    """Refuse ``--num-gpus`` above what this machine has; 1 means the CPU where there is none."""
    available = torch.cuda.device_count()
    if num_gpus > max(available, 1):
        reason = unusable_gpu() or f"this machine has {available}"
        raise ConfigError(f"--num-gpus {num_gpus}: {reason}")


def _settle_lengths(cfg: CfgNode, overridden: Sequence[str]) -> None:
    """Make the lengths in SOLVER.EPOCHS iterations and empty them.

    A config that a run writes therefore reads back the same, whatever the dataset is by then.

    Args:
        overridden: keys from the command line; of the two names of a length the later one counts.
    """
    lengths = {}
    for name in LENGTHS:
        section, key = name.split(".")
        epochs = cfg.SOLVER.EPOCHS[key]
        given = [other for other in overridden if other in (name, f"SOLVER.EPOCHS.{key}")]
        if epochs and given[-1:] != [name]:
            lengths[section, key] = epochs
        cfg.SOLVER.EPOCHS[key] = type(epochs)()
    if not lengths:
        return
    for key in ("IMS_PER_BATCH", "ACCUMULATE_STEPS"):
        if cfg.SOLVER[key] < 1:
            raise ConfigError(f"SOLVER.{key} {cfg.SOLVER[key]}: use a positive number")
    epoch = Fraction(_count_training_images(cfg), images_per_step(cfg))
    for (section, key), epochs in lengths.items():
        cfg[section][key] = (
            tuple(_iterations(key, step, epoch) for step in epochs)
            if key == "STEPS"
            else _iterations(key, epochs, epoch)
        )


def _iterations(key: str, epochs: float, epoch: Fraction) -> int:
    """``epochs`` times the iterations of one, rounded up."""
    if not isinstance(epochs, int | float) or not 0 < epochs < math.inf:
        raise ConfigError(f"SOLVER.EPOCHS.{key} {epochs!r}: use positive numbers")
    # As floats, 0.07 epochs of 100 images would be more than 7.
    return math.ceil(Fraction(str(epochs)) * epoch)


def _count_training_images(cfg: CfgNode) -> int:
    """How many different images an epoch of `build_train_loader` has."""
    _check_registered(_training_names(cfg))
    return training_images(cfg).used


def _training_names(cfg: CfgNode) -> Sequence[str]:
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty: name a dataset to train on")
    return cfg.DATASETS.TRAIN


def _check_registered(names: Iterable[str]) -> None:
    for name in names:
        if name not in DatasetCatalog.list():
            raise ConfigError(not_registered(name))


def _settle_device(cfg: CfgNode) -> None:
    """Refuse a MODEL.DEVICE that cannot be used; without any GPU "cuda" becomes "cpu"."""
    name = cfg.MODEL.DEVICE
    reason = why_no_device(name)
    if reason:
        raise ConfigError(f"MODEL.DEVICE {name!r}: {reason}")
    if not name.startswith("cuda") or torch.cuda.is_available():
        return
    unusable = unusable_gpu()
    if unusable:
        raise ConfigError(f"MODEL.DEVICE {name!r}: {unusable}; or MODEL.DEVICE cpu for the CPU")
    logger.warning("no CUDA device found: MODEL.DEVICE is cpu")
    cfg.MODEL.DEVICE = "cpu"
    if cfg.SOLVER.AMP.ENABLED:
        logger.warning("no mixed precision without it: SOLVER.AMP.ENABLED is False")
        cfg.SOLVER.AMP.ENABLED = False
        cfg.SOLVER.AMP.DTYPE = "float16"  # its default: it chooses nothing any more


def _expand_paths(cfg: CfgNode) -> None:
    """Replace ~ and $VARIABLES, which no shell sees in a file or behind a quote."""
    cfg.MODEL.WEIGHTS = expanded(cfg.MODEL.WEIGHTS)
    cfg.OUTPUT_DIR = expanded(cfg.OUTPUT_DIR)
    kmeans = cfg.MODEL.ANCHOR_GENERATOR.KMEANS
    kmeans.SOURCE = expanded(kmeans.SOURCE)
    cfg.MODEL.TIMM.FILE = expanded(cfg.MODEL.TIMM.FILE)


def _merge(cfg: CfgNode, source: str | Path, merge: Callable[[], object]) -> None:
    try:
        merge()
    except (KeyError, ValueError, AssertionError, yaml.YAMLError, OSError) as error:
        message = " ".join(str(error).split())
        if isinstance(error, KeyError):  # which quotes what it says
            message = message.strip("'")
        if isinstance(error, OSError) and error.strerror:
            message = f"{error.filename}: {error.strerror}"
        unknown = re.match(r"Non-existent (?:config )?key: (\S+)", message)
        if unknown:
            message = f"unknown config key {unknown[1]}{nearest(unknown[1], _all_keys(cfg))}"
        if "(<class 'float'> vs. <class 'int'>)" in message:
            message += "; write it with a decimal point"
        if isinstance(error, yaml.constructor.ConstructorError) and "tag:" in message:
            message += "; values with tags are not read, as they may run code: write plain ones"
        raise ConfigError(f"{source}: {message}") from error
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{source}: not a config, which maps keys to values ({error})") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested without end; does _BASE_ lead back to it?") from error


def _all_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _all_keys(value, f"{prefix}{key}.")

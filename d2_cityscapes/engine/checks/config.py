"""All checks of a config in one call, before hours are spent."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils import comm

from d2_cityscapes.engine.checkpoints.averaging import check_averaging
from d2_cityscapes.engine.checks.expected import check_expected_results
from d2_cityscapes.engine.checks.model import check_architecture, check_precise_bn
from d2_cityscapes.engine.checks.values import check_values
from d2_cityscapes.engine.computing import check_computing
from d2_cityscapes.engine.setup import ConfigError, check_datasets
from d2_cityscapes.engine.step.parameter_groups import check_parameter_settings
from d2_cityscapes.engine.step.schedules import check_schedule
from d2_cityscapes.engine.step.training_step import check_training_step
from d2_cityscapes.files import check_folder
from d2_cityscapes.modeling.classes import check_classes
from d2_cityscapes.modeling.test_time.build import check_test_time

__all__ = ["check_config", "check_model_config"]


def check_config(cfg: CfgNode, *, train: bool) -> None:
    """Refuse what would end a run later, or make another one of it than was meant.

    Datasets are opened; nothing is built, and nothing is left in OUTPUT_DIR.

    Args:
        cfg: as `load_config` gives it.
        train: whether it is to be trained; else to be evaluated.

    Raises:
        D2CityscapesError: values, classes, datasets, a schedule, expected results or an OUTPUT_DIR
            that cannot be used.
    """
    check_model_config(cfg, train=train)
    check_datasets(cfg, train=train)
    if train:
        check_schedule(cfg)
        check_parameter_settings(cfg)
        check_training_step(cfg)
        check_averaging(cfg)
        check_precise_bn(cfg)
    elif not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty: name a dataset to evaluate on")
    check_expected_results(cfg)
    if comm.is_main_process():
        check_folder(cfg.OUTPUT_DIR)


def check_model_config(cfg: CfgNode, *, train: bool = False) -> None:
    """Refuse a config that no model can be built from, or one of other classes than its data.

    No dataset is opened.

    Args:
        cfg: as `load_config` gives it.
        train: whether it is to be trained; else to predict.

    Raises:
        D2CityscapesError: values, classes or a meta-architecture that cannot be used.
    """
    check_architecture(cfg)
    check_values(cfg, train=train)
    check_classes(cfg)
    check_test_time(cfg)
    check_computing(cfg)

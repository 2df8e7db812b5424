"""Detectron2's DefaultTrainer with the parts of this package in their places."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from d2_cityscapes.data.loader import STEP, TrainLoader, build_train_loader, seed_generators
from d2_cityscapes.data.mapper import CityscapesShardMapper
from d2_cityscapes.data.register import has_truth, label_table_of
from d2_cityscapes.drawing.pictures import PictureWriter
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer, last_checkpoint
from d2_cityscapes.engine.checkpoints.resume import (
    changed_settings,
    check_states,
    parameter_names,
    regrouped,
    run_settings,
)
from d2_cityscapes.engine.checkpoints.saving import about_training, complete_final_weights
from d2_cityscapes.engine.computing import computing, refused_in_a_line
from d2_cityscapes.engine.distributed import distribute, scale_to_world
from d2_cityscapes.engine.hook_order import hooks_in_order
from d2_cityscapes.engine.key_effects import check_key_effects, recorded
from d2_cityscapes.engine.out_of_memory import during
from d2_cityscapes.engine.profiling import ProfileHook
from d2_cityscapes.engine.progress import ProgressPrinter
from d2_cityscapes.engine.run_results import (
    add_augmented,
    both,
    of_augmented,
    write_run_results,
)
from d2_cityscapes.engine.setup import ConfigError, check_start, images_per_step
from d2_cityscapes.engine.start import checked_config, setup
from d2_cityscapes.engine.step.optimizer import build_optimizer, optimized_parameters
from d2_cityscapes.engine.step.prefetch import Prefetcher
from d2_cityscapes.engine.step.schedules import (
    build_lr_scheduler,
    resume_rates,
)
from d2_cityscapes.engine.step.training_step import build_training_step
from d2_cityscapes.errors import D2CityscapesError, building
from d2_cityscapes.evaluation.evaluators import ShardEvaluators, build_evaluator
from d2_cityscapes.evaluation.expected import check_expected
from d2_cityscapes.evaluation.results import read_results
from d2_cityscapes.memory import is_out_of_memory
from d2_cityscapes.modeling.backbones.weights import begins_with_timm, without_timm_weights
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.freezing.freeze import unwrap
from d2_cityscapes.modeling.test_time.build import as_tested, augmented
from d2_cityscapes.run_folder import PICTURES, RESULTS

__all__ = ["Trainer", "build_run", "checked_config", "evaluate", "setup", "train"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains from shards, guards frozen modules, and writes results.json when it evaluates.

    An iteration is an optimizer step, over SOLVER.ACCUMULATE_STEPS batches.

    A resumed run sees the images and draws the random numbers that it would have without the stop.
    """

    def __init__(self, cfg: CfgNode, *, resumes: bool = False):
        """With `resumes` a checkpoint will fill the model, which begins without timm's weights."""
        TrainerBase.__init__(self)  # instead of DefaultTrainer's, which fixes how a step is made
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self.cfg = cfg = scale_to_world(cfg, comm.get_world_size())
        model = self.build_model(without_timm_weights(cfg) if resumes else cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        model = distribute(cfg, model)
        self._trainer = build_training_step(cfg, model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            exclude=cfg.MODEL.WEIGHTS_EXCLUDE,
            trained=optimized_parameters(optimizer),
            table=label_table_of(cfg.DATASETS.TRAIN),
            other_anchors=cfg.MODEL.ANCHOR_GENERATOR.KMEANS.ALLOW_OTHER,
            about=about_training(cfg),
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader | Prefetcher:
        loader = build_train_loader(cfg)
        return Prefetcher(loader, cfg.MODEL.DEVICE) if cfg.DATALOADER.PREFETCH else loader

    @classmethod
    @building("the test loader")
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        mapper = CityscapesShardMapper(cfg, False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        pictures = []
        if cfg.TEST.NUM_PICTURES > 0:
            folder = Path(cfg.OUTPUT_DIR) / PICTURES / dataset_name
            pictures.append(PictureWriter(dataset_name, folder, cfg.TEST.NUM_PICTURES))
        return build_evaluator(cfg, dataset_name, cfg.OUTPUT_DIR, beside=pictures)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[ShardEvaluators] | None = None,
        *,
        weights: str | Path | None = None,
    ) -> dict:
        """Evaluate on every dataset of DATASETS.TEST and write OUTPUT_DIR/results.json.

        Args:
            weights: file that the model's weights came from, for its checksum in results.json.
        """
        started = time.perf_counter()
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        with during(lambda: "the evaluation"):
            results = super().test(cfg, as_tested(cfg, model), evaluators)
        seconds = time.perf_counter() - started
        write_run_results(cfg, evaluators, seconds=seconds, weights=weights)
        return results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Evaluate once more with TEST.AUG, behind `test`, whose results.json it adds to.

        Pictures and submissions go to OUTPUT_DIR/TTA, and tasks are named with "_TTA" behind.
        """
        started, own = time.perf_counter(), of_augmented(cfg)
        evaluators = [cls.build_evaluator(own, name) for name in cfg.DATASETS.TEST]
        with during(lambda: "the evaluation with TEST.AUG"):
            results = super().test(cfg, augmented(cfg, model), evaluators)
        return add_augmented(cfg, evaluators, results, seconds=time.perf_counter() - started)

    def train(self) -> dict | None:
        """Train, evaluate, and check TEST.EXPECTED_RESULTS.

        Returns:
            The results of the last evaluation; None on other ranks than the first.
        """
        loop = logging.getLogger("detectron2.engine.train_loop")
        loop.addFilter(_no_trace_of_mistakes)
        try:
            TrainerBase.train(self, self.start_iter, self.max_iter)  # DefaultTrainer checks one set
        finally:
            loop.removeFilter(_no_trace_of_mistakes)
        if not comm.is_main_process():
            return None
        _check_results(self.cfg)
        return self._last_eval_results

    def run_step(self) -> None:
        # A step's random numbers follow from its number: so they need no place in the checkpoint
        # (which only the first rank writes), and no evaluation in between shifts them.
        seed_generators(self.data_loader.seed, STEP, self.iter, comm.get_rank(), gpu=True)
        with during(lambda: f"iteration {self.iter}"), refused_in_a_line():
            super().run_step()

    def state_dict(self) -> dict:
        """With the position in the data, what is frozen, and what Detectron2 0.6 leaves out.

        That is the states of optimizer and gradient scaler.
        """
        return super().state_dict() | {
            "_trainer": self._trainer.state_dict(),
            "data": self.data_loader.state_dict(),
            "parameters": self._parameters(),
            **run_settings(self.cfg),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        checkpoint = self.checkpointer.get_checkpoint_file()
        check_states(state_dict, self.cfg, checkpoint)
        base_lrs = list(self.scheduler.base_lrs)
        super().load_state_dict(state_dict)
        step = dict(state_dict["_trainer"])
        saved, now = state_dict.get("parameters"), self._parameters()
        step["optimizer"] = regrouped(step["optimizer"], saved, now, checkpoint)
        self._trainer.load_state_dict(step)
        if self.iter + 1 < self.max_iter:
            resume_rates(self.scheduler, base_lrs)
            changed = changed_settings(state_dict, self.cfg)
            if changed:
                logger.warning("from iteration %d on: %s", self.iter + 1, ", ".join(changed))
        data = state_dict.get("data")
        if data is None:
            seen = (self.iter + 1) * images_per_step(self.cfg)
            logger.warning("checkpoint without a position in the data: going on at image %d", seen)
            data = {"seed": self.data_loader.seed, "position": seen}
        self.data_loader.load_state_dict(data)

    def _parameters(self) -> list[list[str]]:
        return parameter_names(unwrap(self.model), self.optimizer)

    def build_hooks(self) -> list[HookBase]:
        return hooks_in_order(self, super().build_hooks())

    def build_writers(self) -> list[EventWriter]:
        return [
            ProgressPrinter(self.max_iter) if isinstance(writer, CommonMetricPrinter) else writer
            for writer in super().build_writers()
        ]


def _no_trace_of_mistakes(record: logging.LogRecord) -> bool:
    """Keep what ends as one line of the command out of the log of the training loop."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not (isinstance(error, D2CityscapesError) or is_out_of_memory(error))


def _check_results(cfg: CfgNode) -> None:
    """Hold the results.json just written against TEST.EXPECTED_RESULTS."""
    if cfg.DATASETS.TEST and not any(map(has_truth, cfg.DATASETS.TEST)):
        return  # submissions alone were written
    rows, _ = read_results(Path(cfg.OUTPUT_DIR) / RESULTS)
    check_expected(cfg.TEST.EXPECTED_RESULTS, rows)


def train(
    cfg: CfgNode,
    *,
    resume: bool = False,
    profile: int = 0,
    allow_unused: bool | Collection[str] = False,
) -> dict | None:
    """Train to SOLVER.MAX_ITER, with evaluation at the end.

    Args:
        cfg: from `setup`.
        resume: continue from the last checkpoint in OUTPUT_DIR where there is one.
        profile: steps for OUTPUT_DIR/profile, see `ProfileHook`; 0 for none.
        allow_unused: True, or the config keys, to be warned of instead of refused where they have
            no effect on this run.

    Returns:
        The results of the last evaluation; None on other ranks than the first.

    Raises:
        ConfigError: keys without effect, see `check_key_effects`; or no weights to begin from, see
            `check_start`.
    """
    resumes = resume and bool(last_checkpoint(cfg.OUTPUT_DIR))
    if not resumes:
        check_start(cfg)
    with computing(cfg):
        trainer, reads = build_run(cfg, resumes=resumes)
        if comm.is_main_process():  # which reads more than the others: checkpoints, writers
            check_key_effects(trainer.cfg, reads, allowed=allow_unused)
        if profile and comm.is_main_process():
            trainer.register_hooks([ProfileHook(Path(cfg.OUTPUT_DIR) / "profile", profile)])
        trainer.resume_or_load(resume=resume)
        complete_final_weights(trainer)
        began = cfg.MODEL.WEIGHTS or begins_with_timm(cfg) or trainer.start_iter > 0
        if cfg.MODEL.FREEZE.MODULES and not began:
            logger.warning(
                "MODEL.FREEZE.MODULES freezes %s with RANDOM weights, as MODEL.FROM_SCRATCH allows",
                ", ".join(cfg.MODEL.FREEZE.MODULES),
            )
        return trainer.train()


def build_run(cfg: CfgNode, *, resumes: bool = False) -> tuple[Trainer, Collection[str]]:
    """A trainer, beside all that its evaluations are built from, and what was read for it.

    Args:
        cfg: from `setup`.
        resumes: as for the trainer.

    Returns:
        The trainer, and the names of the keys of its config, see `recorded`.
    """
    cfg, reads = recorded(cfg)
    trainer = Trainer(cfg, resumes=resumes)
    _build_evaluation(cfg, trainer.model)
    return trainer, reads


def _build_evaluation(cfg: CfgNode, model: nn.Module) -> list[ShardEvaluators]:
    """The evaluators of DATASETS.TEST, and what else an evaluation is built from."""
    as_tested(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        augmented(cfg, model)
    CityscapesShardMapper(cfg, False)  # also for a later evaluation, where DATASETS.TEST is empty
    for name in cfg.DATASETS.TEST:
        Trainer.build_test_loader(cfg, name)
    return [Trainer.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]


def evaluate(cfg: CfgNode, *, allow_unused: bool | Collection[str] = False) -> dict:
    """Evaluate MODEL.WEIGHTS on DATASETS.TEST and check TEST.EXPECTED_RESULTS.

    Args:
        cfg: from `setup`.
        allow_unused: as for `train`; of the keys only those of MODEL and TEST are looked at.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("--eval-only needs MODEL.WEIGHTS, the checkpoint to evaluate")
    with computing(cfg):
        cfg, reads = recorded(cfg)
        model = Trainer.build_model(cfg)
        evaluators = _build_evaluation(cfg, model)
        if comm.is_main_process():
            check_key_effects(cfg, reads, allowed=allow_unused, sections=("MODEL", "TEST"))
        table = label_table_of(cfg.DATASETS.TEST)
        Checkpointer(model, save_dir=cfg.OUTPUT_DIR, table=table).load(cfg.MODEL.WEIGHTS)
        results = Trainer.test(cfg, model, evaluators, weights=cfg.MODEL.WEIGHTS)
        if cfg.TEST.AUG.ENABLED:
            results = both(results, Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        _check_results(cfg)
    return results

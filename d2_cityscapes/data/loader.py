"""The training loader: the same samples for a seed, whatever loads them, and after a resume."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_batch_data_loader, get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from d2_cityscapes.config import model_tasks
from d2_cityscapes.data.mapper import CityscapesShardMapper
from d2_cityscapes.data.register import has_truth
from d2_cityscapes.data.samplers import ShardSampler
from d2_cityscapes.errors import D2CityscapesError, building

__all__ = [
    "SAMPLE",
    "STEP",
    "LoaderError",
    "TrainLoader",
    "TrainingImages",
    "build_sampler",
    "build_train_loader",
    "preserved_generators",
    "seed_generators",
    "training_dicts",
    "training_images",
]

logger = logging.getLogger(__name__)

# What a seed is used for: the first number of every key of `seed_generators`.
SAMPLE, STEP = range(2)


class LoaderError(D2CityscapesError):
    """A training set, sampler or batch size that cannot be used."""


@dataclass(frozen=True)
class TrainingImages:
    """What a training sees of DATASETS.TRAIN.

    Attributes:
        used: number of images that are trained on, each counted once however often a sampler
            repeats it.
        total: number of images that the datasets have together.
        left_out: why others are not trained on -> how many.
    """

    used: int
    total: int
    left_out: Mapping[str, int]

    def __str__(self) -> str:
        """ "14 of 24 images (10 without instances: DATALOADER.FILTER_EMPTY_ANNOTATIONS)"."""
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.left_out.items())
        return f"{self.used} of {self.total} images" + (f" ({reasons})" if reasons else "")


class TrainLoader:
    """Batches without end; knows how far training has come, and can go on from there.

    A sample, its augmentation included, follows from the seed and its position in the stream of
    `sampler` alone: not from the number of workers or ranks, and not from what else draws random
    numbers. Reading a batch leaves the process's own generators as they were.

    Nothing happens before the first batch is asked for: no worker starts, and a state may still be
    loaded. The position counts samples of batches handed out, over all ranks, not those that
    workers have prepared. With `aspect_ratio_grouping` and images of both orientations, the few
    that wait for a batch of their kind are counted late, so that resuming is exact only for images
    of one orientation, as those of a street camera are.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        mapper: Callable[[dict], dict],
        sampler: ShardSampler,
        total_batch_size: int,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        images: TrainingImages | None = None,
    ) -> None:
        """
        Args:
            dataset: dataset dicts by index.
            mapper: from a dataset dict to model input.
            sampler: the stream of indices.
            total_batch_size: images in a batch, over all ranks.
            aspect_ratio_grouping: batch landscape with landscape, portrait with portrait images.
            num_workers: processes that map; 0 for this process.
            images: what the dataset is of what there is, for the record of a run.
        """
        self.images = images
        self._dataset = dataset
        self._mapper = mapper
        self._sampler = sampler
        self._total_batch_size = total_batch_size
        self._aspect_ratio_grouping = aspect_ratio_grouping
        self._num_workers = num_workers
        self._position = 0

    @property
    def seed(self) -> int:
        """Seed of the order and of the augmentations."""
        return self._sampler.seed

    @property
    def num_workers(self) -> int:
        """Processes that map; 0 for the one that asks."""
        return self._num_workers

    def __iter__(self) -> Iterator[list[dict]]:
        """Batches of this rank, from where the loader stands.

        With worker processes, all but the first may be asked for from another thread: once started,
        workers leave the generators of this process alone.
        """
        with preserved_generators():
            batches = iter(self._batches())
            batch = next(batches)
        while True:
            self._position += self._total_batch_size
            yield batch
            with contextlib.nullcontext() if self._num_workers else preserved_generators():
                batch = next(batches)

    def state_dict(self) -> dict[str, int]:
        """Seed and position, equal on all ranks."""
        return {"seed": self.seed, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state; before the first batch of an iteration is asked for."""
        if state["seed"] != self.seed:
            logger.info("data order: seed %d of the resumed run", state["seed"])
        self._sampler.seed, self._position = state["seed"], state["position"]

    def _batches(self) -> Iterator[list[dict]]:
        # A worker of a grouping loader hands over single images, otherwise whole batches. Workers
        # take turns, so with chunks of that size the stream arrives in order.
        batch_size = self._total_batch_size // self._sampler.world_size
        samples = _MappedSamples(
            self._dataset,
            self._mapper,
            self._sampler,
            start=self._position,
            chunk=1 if self._aspect_ratio_grouping else batch_size,
        )
        return build_batch_data_loader(
            samples,
            None,
            self._total_batch_size,
            aspect_ratio_grouping=self._aspect_ratio_grouping,
            num_workers=self._num_workers,
        )


class _MappedSamples(IterableDataset):
    """Mapped samples of this rank; in a worker process, of every num_workers-th chunk."""

    def __init__(
        self,
        dataset: Dataset,
        mapper: Callable[[dict], dict],
        sampler: ShardSampler,
        *,
        start: int,
        chunk: int,
    ) -> None:
        self._dataset = dataset
        self._mapper = PicklableWrapper(mapper)  # so that a worker process can get any callable
        self._sampler = sampler
        self._start = start
        self._chunk = chunk

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        turn, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for i, (position, index) in enumerate(self._sampler.samples(self._start)):
            if i // self._chunk % turns == turn:
                seed_generators(self._sampler.seed, SAMPLE, position)
                yield self._mapper(self._dataset[index])


@building("the training loader")
def build_train_loader(
    cfg: CfgNode, *, mapper: Callable[[dict], dict] | None = None
) -> TrainLoader:
    """The loader of DATASETS.TRAIN, as the DATALOADER keys and SEED say.

    With SEED below 0 the ranks agree on a random one, which the state of the loader keeps.

    Args:
        mapper: default ``CityscapesShardMapper(cfg, True)``.

    Raises:
        LoaderError: no usable images, an unknown sampler, or a batch that the ranks cannot share.
    """
    batch_size, ranks = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if batch_size < 1 or batch_size % ranks:
        raise LoaderError(
            f"SOLVER.IMS_PER_BATCH {batch_size}: not a positive multiple of the {ranks} processes"
        )
    dicts, images = _select(cfg)
    sampler = build_sampler(cfg, dicts)
    logger.info("training on %s", images)
    # The mapper reads annotations from the shards; workers need not carry them.
    light = [{k: v for k, v in d.items() if k != "annotations"} for d in dicts]
    return TrainLoader(
        DatasetFromList(light, copy=False),
        mapper=CityscapesShardMapper(cfg, True) if mapper is None else mapper,
        sampler=sampler,
        total_batch_size=batch_size,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        images=images,
    )


def build_sampler(cfg: CfgNode, dicts: Sequence[dict]) -> ShardSampler:
    """The sampler of DATALOADER.SAMPLER_TRAIN, SHARD_LOCAL and SEED over dataset dicts.

    With SEED below 0 all ranks must call it together.

    Raises:
        LoaderError: an unknown sampler, or a subset without images.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in _SAMPLER_OPTIONS:
        raise LoaderError(
            f"DATALOADER.SAMPLER_TRAIN {name!r}: use one of {', '.join(_SAMPLER_OPTIONS)}"
        )
    seed = cfg.SEED if cfg.SEED >= 0 else int(comm.shared_random_seed())
    shard_local = cfg.DATALOADER.SHARD_LOCAL
    order = f"{name}, shard by shard" if shard_local else name
    logger.info("order of %d images: %s, seed %d", len(dicts), order, seed)
    return ShardSampler(
        len(dicts),
        seed=seed,
        shards=[d["shard"] for d in dicts] if shard_local else None,
        **_SAMPLER_OPTIONS[name](cfg, dicts),
    )


def seed_generators(seed: int, *key: int, gpu: bool = False) -> None:
    """Seed the generators of random, numpy and torch for one purpose.

    Args:
        seed: of the run.
        key: tells this purpose from all others, e.g. ``SAMPLE, position``.
        gpu: torch's generators on GPUs too.
    """
    python, numpy, pytorch = np.random.SeedSequence(seed, spawn_key=key).generate_state(3).tolist()
    random.seed(python)
    np.random.seed(numpy)
    seed_torch = torch.manual_seed if gpu else torch.default_generator.manual_seed
    seed_torch(pytorch)


@contextlib.contextmanager
def preserved_generators() -> Iterator[None]:
    """Put the generators of random, numpy and torch (on the CPU) back as they were before."""
    python, numpy = random.getstate(), np.random.get_state()
    pytorch = torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(pytorch)


def training_dicts(cfg: CfgNode) -> list[dict]:
    """Dataset dicts of the images of DATASETS.TRAIN that can be trained on.

    Images without instances are left out where DATALOADER.FILTER_EMPTY_ANNOTATIONS asks for it and
    the model predicts instances alone: a semantic head learns from road and sky as well.

    Raises:
        LoaderError: none is left, or a dataset that is not one of shards or has no truth.
    """
    return _select(cfg)[0]


def training_images(cfg: CfgNode) -> TrainingImages:
    """The record of what `build_train_loader` trains on; raises as `training_dicts` does."""
    return _select(cfg)[1]


def _select(cfg: CfgNode) -> tuple[list[dict], TrainingImages]:
    """The dicts that samplers get, and the record of what becomes of all."""
    every = _all_dicts(cfg)
    dicts = _filtered(cfg, every)
    usable = used = len(dicts)
    if cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        # as its sampler counts; a ratio that leaves none is the loader's to refuse
        used = max(int(usable * cfg.DATALOADER.RANDOM_SUBSET_RATIO), 1)
    left_out = {
        "without instances: DATALOADER.FILTER_EMPTY_ANNOTATIONS": len(every) - usable,
        "not in the subset: DATALOADER.RANDOM_SUBSET_RATIO": usable - used,
    }
    reasons = {why: n for why, n in left_out.items() if n}
    return dicts, TrainingImages(used, len(every), reasons)


def _all_dicts(cfg: CfgNode) -> list[dict]:
    """Dataset dicts of all images of DATASETS.TRAIN."""
    names = ", ".join(cfg.DATASETS.TRAIN)
    try:
        dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    except AssertionError as error:  # Detectron2's word for datasets that cannot be used
        raise LoaderError(f"DATASETS.TRAIN {names}: {error}") from error
    if not all("shard" in d for d in dicts):
        raise LoaderError(
            f"DATASETS.TRAIN {names}: not datasets of shards; register them with "
            "d2_cityscapes.data.register_cityscapes_shards"
        )
    for name in cfg.DATASETS.TRAIN:
        if not has_truth(name):
            raise LoaderError(
                f"DATASETS.TRAIN {name}: has no annotations to train on; it is for --eval-only "
                "with TEST.SUBMISSION True"
            )
    return dicts


def _filtered(cfg: CfgNode, dicts: list[dict]) -> list[dict]:
    tasks = model_tasks(cfg)
    if (
        not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        or "bbox" not in tasks
        or {"sem_seg", "panoptic_seg"} & {*tasks}
    ):
        return dicts
    kept = filter_images_with_only_crowd_annotations(dicts)
    if not kept:
        raise LoaderError(
            f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: No valid data found: none of "
            f"{len(dicts)} images has an instance (images without are left out: "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
        )
    return kept


def _repeat_options(cfg: CfgNode, dicts: Sequence[dict]) -> dict:
    # Detectron2 0.6 has neither the key nor the argument, and takes the root.
    options = {"sqrt": cfg.DATALOADER.REPEAT_SQRT} if "REPEAT_SQRT" in cfg.DATALOADER else {}
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dicts, cfg.DATALOADER.REPEAT_THRESHOLD, **options
    )
    return {"repeat_factors": factors}


def _subset_options(cfg: CfgNode, dicts: Sequence[dict]) -> dict:
    ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
    if not 1 <= ratio * len(dicts) <= len(dicts):
        raise LoaderError(
            f"DATALOADER.RANDOM_SUBSET_RATIO {ratio}: no subset of {len(dicts)} images; "
            "use a number in (0, 1] that leaves at least one"
        )
    return {"subset_ratio": ratio}


# DATALOADER.SAMPLER_TRAIN -> what it adds to the arguments of ShardSampler
_SAMPLER_OPTIONS: dict[str, Callable[[CfgNode, Sequence[dict]], dict]] = {
    "TrainingSampler": lambda cfg, dicts: {},
    "RepeatFactorTrainingSampler": _repeat_options,
    "RandomSubsetTrainingSampler": _subset_options,
}

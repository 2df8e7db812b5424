"""The training loader: the same samples for a seed, whatever loads them, and after a resume."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_batch_data_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from d2_cityscapes.data.mapper import PASTE_FROM, CityscapesShardMapper
from d2_cityscapes.data.register import label_table_of
from d2_cityscapes.data.repeat_factors import (
    class_balanced_factors,
    factor_table,
    small_object_factors,
)
from d2_cityscapes.data.samplers import ShardSampler
from d2_cityscapes.data.training_set import LoaderError, TrainingImages, training_set
from d2_cityscapes.errors import building
from d2_cityscapes.labels.instances import SMALL_AREA

__all__ = [
    "SAMPLE",
    "STEP",
    "TrainLoader",
    "build_sampler",
    "build_train_loader",
    "preserved_generators",
    "seed_generators",
]

logger = logging.getLogger(__name__)

# What a seed is used for: the first number of every key of `seed_generators`.
SAMPLE, STEP = range(2)


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
        pairs: bool = False,
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
            pairs: give the mapper a second record with each, as `PASTE_FROM` of its dict.
        """
        self.images = images
        self._dataset = dataset
        self._mapper = mapper
        self._sampler = sampler
        self._total_batch_size = total_batch_size
        self._aspect_ratio_grouping = aspect_ratio_grouping
        self._num_workers = num_workers
        self._pairs = pairs
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
            pairs=self._pairs,
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
        pairs: bool,
    ) -> None:
        self._dataset = dataset
        self._mapper = PicklableWrapper(mapper)  # so that a worker process can get any callable
        self._sampler = sampler
        self._start = start
        self._chunk = chunk
        self._pairs = pairs

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        turn, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for i, (position, index) in enumerate(self._sampler.samples(self._start)):
            if i // self._chunk % turns == turn:
                seed_generators(self._sampler.seed, SAMPLE, position)
                record = self._dataset[index]
                if self._pairs:
                    second = self._sampler.second(index, np.random.rand())
                    record = {**record, PASTE_FROM: self._dataset[second]}
                yield self._mapper(record)


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
    dicts, images = training_set(cfg)
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
        pairs=cfg.INPUT.COPY_PASTE.PROB != 0,
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


def _repeat_options(cfg: CfgNode, dicts: Sequence[dict]) -> dict:
    # Detectron2 0.6 has neither the key nor the argument, and takes the root.
    options = {"sqrt": cfg.DATALOADER.REPEAT_SQRT} if "REPEAT_SQRT" in cfg.DATALOADER else {}
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dicts, cfg.DATALOADER.REPEAT_THRESHOLD, **options
    )
    return _logged(cfg, dicts, factors)


def _balanced_options(cfg: CfgNode, dicts: Sequence[dict]) -> dict:
    classes = len(label_table_of(cfg.DATASETS.TRAIN).things)
    factors = class_balanced_factors(dicts, cfg.DATALOADER.BALANCE, classes)
    return _logged(cfg, dicts, factors)


def _small_object_options(cfg: CfgNode, dicts: Sequence[dict]) -> dict:
    classes = len(label_table_of(cfg.DATASETS.TRAIN).things)
    area = cfg.DATALOADER.SMALL_AREA
    factors = small_object_factors(dicts, cfg.DATALOADER.BALANCE, classes, area)
    return _logged(cfg, dicts, factors, area)


def _logged(
    cfg: CfgNode, dicts: Sequence[dict], factors: torch.Tensor, area: float = SMALL_AREA
) -> dict:
    names = [c.name for c in label_table_of(cfg.DATASETS.TRAIN).things]
    logger.info("how often images come:\n%s", factor_table(dicts, factors, names, area))
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
    "ClassBalancedTrainingSampler": _balanced_options,
    "SmallObjectTrainingSampler": _small_object_options,
}

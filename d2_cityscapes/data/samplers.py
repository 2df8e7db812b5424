"""The order of training: an endless stream of dataset indices, entered at any position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.utils import comm
from torch.utils.data import Sampler

__all__ = ["ShardSampler"]


class ShardSampler(Sampler):
    """Epochs one after another, each a new shuffle of the dataset; every rank takes its share.

    All ranks agree on one stream. Its positions count from 0 over all ranks, and rank r of w takes
    positions start + r, start + r + w, ... The order is that of Detectron2's TrainingSampler,
    RepeatFactorTrainingSampler (`repeat_factors`) or RandomSubsetTrainingSampler (`subset_ratio`)
    with the same seed, unless `shards` is given.

    Attributes:
        seed: may be set between two streams, as a resumed run does.
        rank, world_size: the share of this process.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        repeat_factors: torch.Tensor | None = None,
        subset_ratio: float | None = None,
        shards: Sequence[str] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """
        Args:
            size: images in the dataset.
            seed: of all shuffles; the same on all ranks.
            repeat_factors: (size,) float, how often an image comes in an epoch on average. The
                fractional part is its chance to come once more.
            subset_ratio: train on this part of the images, chosen by the seed.
            shards: the shard of each image. An epoch then visits one shard after another, in random
                order, and shuffles inside each.
            rank: this process, by default as Detectron2 knows it.
            world_size: number of processes, likewise.
        """
        self._size = size
        self._repeat_factors = repeat_factors
        self._subset_ratio = subset_ratio
        self._shard_of: torch.Tensor | None = None
        self._pool: tuple[int, _Pool] | None = None
        if shards is not None:
            number = {shard: i for i, shard in enumerate(dict.fromkeys(shards))}
            self._shard_of = torch.tensor([number[shard] for shard in shards])
        self.seed = seed
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size

    def __iter__(self) -> Iterator[int]:
        """Dataset indices of this rank, from the beginning."""
        return (index for _, index in self.samples())

    def samples(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """(position in the stream, dataset index) of this rank's share, without end.

        Args:
            start: position from which the ranks divide the stream.
        """
        position = start + self.rank
        end = 0  # of the epoch, as a position
        for epoch in self._epochs():
            begin, end = end, end + len(epoch)
            if position < end:
                indices = epoch.tolist()
            while position < end:
                yield position, indices[position - begin]
                position += self.world_size

    def second(self, index: int, draw: float) -> int:
        """Another image beside one of the stream, for augmentations that mix two.

        It is one that the stream has, as likely as it has it, and where shards are visited one
        after another of the same shard; the image itself only where there is no other.

        Args:
            index: dataset index of the one.
            draw: a random number in [0, 1).
        """
        if self._pool is None or self._pool[0] != self.seed:  # which chooses the subset
            self._pool = self.seed, _Pool(self._images(), self._repeat_factors, self._shard_of)
        return self._pool[1].other(index, draw)

    def _images(self) -> torch.Tensor:
        """Dataset indices that an epoch may have."""
        images = torch.arange(self._size)
        if self._subset_ratio is not None:
            generator = torch.Generator().manual_seed(self.seed)
            kept = int(self._size * self._subset_ratio)
            images = torch.randperm(self._size, generator=generator)[:kept]
        return images

    def _epochs(self) -> Iterator[torch.Tensor]:
        """Dataset indices of each epoch.

        One generator makes them all, as in Detectron2; it draws in the same order too.
        """
        images = self._images()
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            epoch = self._repeated(images, generator)
            epoch = epoch[torch.randperm(len(epoch), generator=generator)]
            if self._shard_of is not None:
                turn = torch.randperm(int(self._shard_of.max()) + 1, generator=generator)
                epoch = epoch[turn[self._shard_of[epoch]].argsort(stable=True)]
            yield epoch

    def _repeated(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self._repeat_factors is None:
            return images
        factors = self._repeat_factors[images]
        once_more = torch.rand(len(factors), generator=generator) < factors.frac()
        return images.repeat_interleave(factors.long() + once_more)


class _Pool:
    """Images to draw from, in order of their shards where these matter."""

    def __init__(
        self,
        images: torch.Tensor,
        repeat_factors: torch.Tensor | None,
        shard_of: torch.Tensor | None,
    ) -> None:
        if shard_of is None:
            shard_of = torch.zeros(int(images.max()) + 1, dtype=torch.int64)
        self._images = images[shard_of[images].argsort(stable=True)].numpy()
        weights = np.ones(len(images))
        if repeat_factors is not None:
            weights = repeat_factors.double().numpy()[self._images]
        self._ends = weights.cumsum()
        self._begins = self._ends - weights
        self._row = {int(image): row for row, image in enumerate(self._images)}
        self._shards = shard_of.numpy()[self._images]

    def other(self, index: int, draw: float) -> int:
        """See `ShardSampler.second`."""
        row = self._row[index]
        first, last = np.searchsorted(self._shards, [self._shards[row], self._shards[row] + 1])
        last -= 1
        own = self._ends[row] - self._begins[row]
        position = self._begins[first] + draw * (self._ends[last] - self._begins[first] - own)
        if position >= self._begins[row]:
            position += own
        found = np.searchsorted(self._ends, position, side="right")
        return int(self._images[np.clip(found, first, last)])

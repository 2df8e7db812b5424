"""The order of training: Detectron2's where it has one, epochs, shards, ranks, any entry point."""

from __future__ import annotations

from itertools import groupby, islice

import pytest
import torch
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_cityscapes.data.samplers import ShardSampler

SHARDS = ["b", "b", "a", "a", "a", "c", "b"]  # in no order, of unequal sizes
FACTORS = torch.tensor([1.0, 2.0, 1.5, 1.0, 3.25, 1.0, 1.75])
MODES = {
    "plain": {},
    "repeat": {"repeat_factors": FACTORS},
    "subset": {"subset_ratio": 0.6},
    "shards": {"shards": SHARDS},
    "repeat and shards": {"repeat_factors": FACTORS, "shards": SHARDS},
    "subset and shards": {"subset_ratio": 0.6, "shards": SHARDS},
}


def head(sampler, count: int) -> list[int]:
    return list(islice(sampler, count))


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("size", [1, 2, 50])
def test_without_extras_the_order_is_detectron2s(size, seed):
    expected = head(TrainingSampler(size, seed=seed), 200)
    assert head(ShardSampler(size, seed=seed), 200) == expected


@pytest.mark.parametrize("seed", [0, 5])
def test_repeat_factors_give_detectron2s_order(seed):
    factors = 1 + 3 * torch.rand(40, generator=torch.Generator().manual_seed(1))
    expected = head(RepeatFactorTrainingSampler(factors, seed=seed), 500)
    assert head(ShardSampler(40, seed=seed, repeat_factors=factors), 500) == expected


@pytest.mark.parametrize("ratio", [0.1, 0.55, 1.0])
def test_a_subset_is_detectron2s(ratio):
    stock = RandomSubsetTrainingSampler(30, ratio, seed_shuffle=4, seed_subset=4)
    assert head(ShardSampler(30, seed=4, subset_ratio=ratio), 100) == head(stock, 100)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30), st.integers(0, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_image_comes_once_in_every_epoch(shards, seed, local):
    size = len(shards)
    order = head(ShardSampler(size, seed=seed, shards=shards if local else None), 4 * size)
    epochs = [order[i : i + size] for i in range(0, 4 * size, size)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(size))
        if local:  # each shard is one uninterrupted run
            assert len(list(groupby(shards[i] for i in epoch))) == len(set(shards))


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(1, 4, width=16)), min_size=1, max_size=20),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_repeats_stay_inside_their_shard(images, seed):
    """The first epoch has the images of the plain one, as often, but sorted into shards."""
    shards, factors = zip(*images, strict=True)
    factors = torch.tensor(factors)
    plain = RepeatFactorTrainingSampler(factors, seed=seed)
    # the same draws as above: how often each image comes
    counts = factors.trunc() + (
        torch.rand(len(factors), generator=torch.Generator().manual_seed(seed)) < factors.frac()
    )
    length = int(counts.sum())
    sampler = ShardSampler(len(shards), seed=seed, repeat_factors=factors, shards=shards)
    epoch = head(sampler, length)
    assert sorted(epoch) == sorted(head(plain, length))
    assert len(list(groupby(shards[i] for i in epoch))) == len(set(shards))


def test_shard_local_epochs_differ_in_both_orders():
    shards = [i // 10 for i in range(40)]
    order = head(ShardSampler(40, seed=1, shards=shards), 40 * 20)
    epochs = [order[i : i + 40] for i in range(0, 800, 40)]
    visits = {tuple(shard for shard, _ in groupby(shards[i] for i in epoch)) for epoch in epochs}
    insides = {tuple(i for i in epoch if shards[i] == 0) for epoch in epochs}
    assert len(visits) > 10 and len(insides) == 20


def test_repeat_factors_hold_on_average():
    epochs = 400
    order = head(ShardSampler(7, seed=0, repeat_factors=FACTORS, shards=SHARDS), 11 * epochs)
    share = torch.bincount(torch.tensor(order), minlength=7) / len(order)
    torch.testing.assert_close(share, FACTORS / FACTORS.sum(), rtol=0.05, atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 23, 100])
def test_the_stream_can_be_entered_anywhere(mode, start):
    sampler = ShardSampler(7, seed=2, **MODES[mode])
    whole = list(islice(sampler.samples(), start + 50))
    assert [position for position, _ in whole] == list(range(start + 50))
    assert list(islice(sampler.samples(start), 50)) == whole[start:]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("world_size", "start"), [(1, 0), (2, 0), (3, 5), (4, 12), (16, 3)])
def test_ranks_divide_the_stream(mode, world_size, start):
    """Also where they are more than the images, or begin in the middle of an epoch."""
    one = ShardSampler(7, seed=2, **MODES[mode])
    ranks = [
        ShardSampler(7, seed=2, rank=rank, world_size=world_size, **MODES[mode])
        for rank in range(world_size)
    ]
    shares = [list(islice(rank.samples(start), 20)) for rank in ranks]
    together = sorted(sample for share in shares for sample in share)
    assert together == list(islice(one.samples(start), 20 * world_size))
    assert [position for position, _ in shares[-1]] == [
        start + world_size - 1 + k * world_size for k in range(20)
    ]


def test_a_new_seed_is_a_new_stream_and_a_new_subset():
    sampler = ShardSampler(100, seed=1, subset_ratio=0.2)
    before = head(sampler, 20)
    sampler.seed = 2
    after = head(sampler, 20)
    assert after == head(ShardSampler(100, seed=2, subset_ratio=0.2), 20)
    assert set(after) != set(before)


@pytest.mark.parametrize("mode", MODES)
def test_a_second_image_is_one_of_the_stream_as_often(mode):
    sampler = ShardSampler(7, seed=2, **MODES[mode])
    stream = {*head(sampler, 200)}
    draws = [i / 1000 for i in range(1000)]
    for index in stream:
        found = torch.bincount(
            torch.tensor([sampler.second(index, draw) for draw in draws]), minlength=7
        )
        others = torch.zeros(7)
        for other in stream - {index}:
            if "shards" not in MODES[mode] or SHARDS[other] == SHARDS[index]:
                others[other] = FACTORS[other] if "repeat_factors" in MODES[mode] else 1
        if others.sum() == 0:
            others[index] = 1  # there is no other
        torch.testing.assert_close(found / 1000, others / others.sum(), atol=0.002, rtol=0)


def test_the_second_image_of_a_resumed_subset_is_of_that():
    sampler = ShardSampler(100, seed=1, subset_ratio=0.2)
    sampler.second(head(sampler, 1)[0], 0.5)
    sampler.seed = 2
    stream = {*head(sampler, 20)}
    assert {sampler.second(head(sampler, 1)[0], i / 99) for i in range(99)} < stream

"""Samples drawn by keys: as many as Detectron2 draws, and each as likely as any other."""

from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.modeling.sampling import subsample_labels

from d2_cityscapes.modeling.execution.wait_free.sampling import draw_sample
from d2_cityscapes.modeling.execution.wait_free.where import (
    as_on_cpu,
    as_on_gpu,
    is_queued,
    random_keys,
)


def make_labels(positive: int, negative: int, ignored: int) -> torch.Tensor:
    labels = torch.tensor([1] * positive + [0] * negative + [-1] * ignored)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]


def draw(labels: torch.Tensor, number: int, fraction: float) -> list[tuple[list[int], list[int]]]:
    """Indices of positives and of negatives in each image."""
    sample = draw_sample(labels == 1, labels == 0, number, fraction)
    slots = sample.positive.shape[1]
    return [
        (index[:slots][counts[:slots]].tolist(), index[slots:][counts[slots:]].tolist())
        for index, counts in zip(sample.indices, sample.counts, strict=True)
    ]


@pytest.mark.parametrize("number", [0, 6, 20, 1000])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_as_many_as_detectron2(number, fraction):
    sizes = [(30, 50, 20), (2, 90, 8), (0, 100, 0), (90, 3, 7), (0, 0, 100)]
    labels = torch.stack([make_labels(*size) for size in sizes])
    drawn = draw(labels, number, fraction)
    for own, (positive, negative) in zip(labels, drawn, strict=True):
        expected = subsample_labels(own.clone(), number, fraction, 0)
        assert [len(positive), len(negative)] == [len(index) for index in expected]
        assert len({*positive, *negative}) == len(positive) + len(negative)
        assert (own[positive] == 1).all()
        assert (own[negative] == 0).all()


@pytest.mark.parametrize(("few", "fraction"), [(5, 0.5), (2, 0.5)])  # enough positives, or not
def test_each_subset_is_as_likely(few, fraction):
    torch.manual_seed(0)
    labels = make_labels(few, 6, 3)
    draws, number = 6000, 6
    drawn = draw(labels.expand(draws, -1), number, fraction)
    for kind, members in enumerate(((labels == 1), (labels == 0))):
        members = members.nonzero()[:, 0].tolist()
        size = len(drawn[0][kind])
        subsets = list(itertools.combinations(members, size))
        found = torch.zeros(len(subsets))
        for each in drawn:
            found[subsets.index(tuple(sorted(each[kind])))] += 1
        expected = draws / len(subsets)
        chi_square = ((found - expected) ** 2 / expected).sum().item()
        freedom = len(subsets) - 1
        assert chi_square <= freedom + 5 * (2 * freedom) ** 0.5


def test_numbers_of_the_cpu_where_both_are_to_draw_the_same(fake_gpu):
    on_cpu = torch.zeros(1)
    on_gpu = on_cpu.to("cuda")
    assert not is_queued(on_cpu)
    assert is_queued(on_gpu)
    with as_on_gpu():
        assert is_queued(on_cpu)
        torch.manual_seed(5)
        expected = torch.rand(2, 3)
        for device in (on_cpu.device, on_gpu.device):
            torch.manual_seed(5)
            keys = random_keys((2, 3), device)
            assert keys.device == device
            assert torch.equal(keys.to("cpu"), expected)
        with as_on_cpu():
            assert not is_queued(on_cpu) and not is_queued(on_gpu)
        assert is_queued(on_cpu)
    assert not is_queued(on_cpu) and is_queued(on_gpu)

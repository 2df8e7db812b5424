"""Stems that keep no indices of their pooling compute what Detectron2's and torchvision's do."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling.backbone.resnet import BasicStem
from torch import nn
from torchvision.models import resnet18

from d2_cityscapes.engine.step.activations import saved_activations
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.execution.lean_pooling import pool_without_indices


class TorchvisionStem(nn.Module):
    def __init__(self):
        super().__init__()
        whole = resnet18(weights=None)
        self.layers = nn.Sequential(whole.conv1, whole.bn1, whole.relu, whole.maxpool)

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("make", [lambda: BasicStem(3, 64, "FrozenBN"), TorchvisionStem])
def test_the_same_numbers_from_less(make):
    torch.manual_seed(0)
    stock = make()
    lean = copy.deepcopy(stock)
    assert pool_without_indices(lean) == 1
    x, results, gradients, memory = torch.randn(2, 3, 30, 42), [], [], []
    for stem in (stock, lean):
        with saved_activations(stem) as saved:
            results.append(stem(x))
        results[-1].square().sum().backward()
        gradients.append([p.grad for p in stem.parameters()])
        memory.append(saved())
    assert torch.equal(*results)
    assert all(map(torch.equal, *gradients))
    assert list(lean.state_dict()) == list(stock.state_dict())
    assert memory[0] - memory[1] >= 8 * results[0].numel(), "an int64 beside each cell"


def test_indices_that_are_asked_for_are_given():
    pool = nn.MaxPool2d(2, return_indices=True)
    pool_without_indices(pool)
    found, indices = pool(torch.arange(4.0).view(1, 1, 2, 2))
    assert (found.item(), indices.item()) == (3, 3)


def test_the_stem_of_every_model_of_a_config_is_lean(tiny_cfg):
    stem = build_model(tiny_cfg).backbone.bottom_up.stem
    assert isinstance(stem, BasicStem) and type(stem) is not BasicStem
    assert pool_without_indices(stem) == 0, "once"

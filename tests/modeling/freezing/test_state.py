"""The tensors of frozen layers: names, norm layers, checksums."""

import pytest
import torch
from torch import nn

from d2_cityscapes.modeling.freezing.state import checksums, frozen_tensors, norm_layers


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))


def test_norm_layers_are_those_with_statistics():
    model = make_model()
    assert norm_layers(model, ["0", "1", "2"]) == [model[1]]
    assert norm_layers(model, ["0", "2"]) == []
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(make_model())
    assert norm_layers(synced, ["1"]) == [synced[1]]


def test_tensors_are_parameters_and_buffers_by_full_name():
    model = nn.ModuleDict({"stem": make_model()})
    model.stem.register_parameter("scale", nn.Parameter(torch.ones(1)))
    layers = ["stem", "stem.0", "stem.1"]
    parameters = {f"stem.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}
    statistics = {f"stem.1.{x}" for x in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(frozen_tensors(model, layers)) == {"stem.scale"} | parameters | statistics
    found = frozen_tensors(nn.DataParallel(model), layers, norm_statistics=False)
    assert set(found) == {"stem.scale"} | parameters


def test_a_layer_stands_for_its_own_tensors():
    model = nn.ModuleDict({"stem": make_model()})
    assert frozen_tensors(model, ["stem"]) == {}
    assert set(frozen_tensors(model, ["stem.2"])) == {"stem.2.weight", "stem.2.bias"}


@pytest.mark.parametrize("value", [1e-45, -0.0, float("nan")])
def test_checksum_sees_every_bit(value):
    zeros = torch.zeros(3, 4)
    changed = zeros.clone()
    changed[1, 2] = value
    before, after = checksums({"x": zeros}), checksums({"x": changed})
    assert before == checksums({"x": zeros.clone()})
    assert before != after


def test_checksum_of_any_tensor():
    tensors = {
        "scalar": torch.tensor(3),
        "bool": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "strided": torch.arange(6).reshape(2, 3).T,
        "empty": torch.zeros(0),
    }
    assert checksums(tensors) == checksums({k: v.clone() for k, v in tensors.items()})
    assert checksums({"x": torch.arange(6).reshape(2, 3)}) != checksums({"x": tensors["strided"]})

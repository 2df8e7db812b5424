"""Freezing by name: patterns, report, norm layers, checksums, and the optimizer."""

import pytest
import torch
from torch import nn

from d2_cityscapes.modeling.freeze import (
    FreezeError,
    checksums,
    find_modules,
    freeze_modules,
    frozen_tensors,
    norm_layers,
    unwrap,
)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
        self.fpn_lateral2 = nn.Conv2d(4, 5, 1)
        self.fpn_output2 = nn.Conv2d(5, 5, 1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(5, 2)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["backbone.stem"], ["backbone.stem"]),
        (["backbone.fpn_*"], ["backbone.fpn_lateral2", "backbone.fpn_output2"]),
        (["backbone.fpn_*2", "head"], ["backbone.fpn_lateral2", "backbone.fpn_output2", "head"]),
        (["backbone.*", "backbone"], ["backbone"]),  # outermost only
        (["head", "backbone.stem.0"], ["backbone.stem.0", "head"]),  # in the model's order
        (["backbone.stem", "backbone.stem.*"], ["backbone.stem"]),
        (["*.[01]"], ["backbone.stem.0", "backbone.stem.1"]),
        ([], []),
    ],
)
def test_patterns(patterns, expected):
    assert find_modules(Model(), patterns) == expected


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [("backbone.stm", "backbone.stem"), ("heads*", "head"), ("Backbone", "backbone")],
)
def test_unknown_pattern_lists_nearest_names(pattern, nearest):
    with pytest.raises(FreezeError, match="matches no module") as error:
        find_modules(Model(), [pattern])
    assert nearest in str(error.value).split("nearest: ")[1].split(", ")


def test_freezes_the_whole_subtree():
    model = Model()
    report = freeze_modules(model, ["backbone.stem", "backbone.fpn_lateral2"])
    assert report.frozen_modules == ("backbone.stem", "backbone.fpn_lateral2")
    assert trainable(model) == {
        *("backbone.fpn_output2.weight", "backbone.fpn_output2.bias", "head.weight", "head.bias")
    }


def test_report_counts_parameters():
    model = Model()
    model.head.bias.requires_grad_(False)  # frozen by someone else
    report = freeze_modules(model, ["backbone.stem"])
    assert report.groups == (
        ("backbone.stem", 16 + 8 + 8, 0),
        ("backbone.fpn_lateral2", 0, 25),
        ("backbone.fpn_output2", 0, 30),
        ("head", 2, 10),
    )
    assert report.frozen_parameters == 34
    assert report.trainable_parameters == 65
    lines = report.table().splitlines()
    assert lines[0].split() == ["module", "frozen", "trainable"]
    assert lines[-1].split() == ["total", "34", "65"]
    assert len({len(line) for line in lines}) == 1


def test_nothing_left_to_train():
    with pytest.raises(FreezeError, match="no parameter to train"):
        freeze_modules(Model(), ["*"])


def test_no_patterns_change_nothing():
    model = Model()
    assert freeze_modules(model, []).frozen_modules == ()
    assert trainable(model) == {name for name, _ in model.named_parameters()}


def test_norm_layers_are_those_with_statistics():
    model = Model()
    assert norm_layers(model, ["backbone"]) == [model.backbone.stem[1]]
    assert norm_layers(model, ["head"]) == []
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(Model())
    assert norm_layers(synced, ["backbone.stem"]) == [synced.backbone.stem[1]]


def test_tensors_are_parameters_and_buffers_by_full_name():
    names = set(frozen_tensors(Model(), ["backbone.stem"]))
    parameters = {f"backbone.stem.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    statistics = {
        f"backbone.stem.1.{x}" for x in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert names == parameters | statistics
    found = frozen_tensors(Model(), ["backbone.stem"], norm_statistics=False)
    assert set(found) == parameters


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


def test_wrapped_model_is_looked_into():
    model = Model()
    wrapped = nn.DataParallel(model)
    assert unwrap(wrapped) is model
    assert unwrap(model) is model
    assert find_modules(wrapped, ["head"]) == ["head"]
    freeze_modules(wrapped, ["head"])
    assert not model.head.weight.requires_grad


def test_frozen_parameters_stay_out_of_the_optimizer():
    build = pytest.importorskip("detectron2.solver.build")
    model = Model()
    freeze_modules(model, ["backbone.stem"])
    groups = build.get_default_optimizer_params(model, base_lr=0.1, weight_decay_norm=0.0)
    optimized = {id(p) for group in groups for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters() if p.requires_grad}
    assert id(model.backbone.stem[1].weight) not in optimized

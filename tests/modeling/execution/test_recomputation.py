"""Activation checkpointing: the same numbers, from less memory and a second forward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18
from torchvision.models._utils import IntermediateLayerGetter

from d2_cityscapes.engine.distributed import buffers_stay
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.execution.recomputation import checkpoint_stages
from d2_cityscapes.modeling.panoptic.backbone import LeakyBlock


class NoisyBlock(CNNBlockBase):
    """A residual block that draws random numbers."""

    def __init__(self, block: nn.Module):
        super().__init__(block.in_channels, block.out_channels, block.stride)
        self.block, self.noise = block, nn.Dropout(0.5)

    def forward(self, x):
        return self.noise(self.block(x))


class Model(nn.Module):
    """A backbone of two stages with two blocks each, and the sum of what it gives as loss."""

    def __init__(self, norm: str = "BN", wrap=lambda block: block, freeze_at: int = 0):
        super().__init__()
        shape = {"bottleneck_channels": 4, "norm": norm}
        stages = [
            ResNet.make_stage(BottleneckBlock, 2, in_channels=8, out_channels=16, **shape),
            ResNet.make_stage(
                BottleneckBlock,
                2,
                in_channels=16,
                out_channels=24,
                stride_per_block=[2, 1],
                **shape,
            ),
        ]
        stages = [[wrap(block) for block in stage] for stage in stages]
        self.backbone = ResNet(BasicStem(3, 8, norm), stages, freeze_at=freeze_at)

    def forward(self, x):
        return (self.backbone(x)["res3"].square()).mean()


def pair(**options) -> tuple[nn.Module, nn.Module]:
    """A model, and its checkpointed twin."""
    torch.manual_seed(0)
    model = Model(**options)
    twin = copy.deepcopy(model)
    assert checkpoint_stages(twin) == 2
    return model, twin


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, steps: int = 2, dtype: torch.dtype | None = None) -> dict:
    """Losses, gradients summed over the steps, and buffers afterwards."""
    torch.manual_seed(7)
    losses = []
    for step in range(steps):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            losses.append(model(images(step)))
        losses[-1].backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"losses": torch.stack(losses).detach(), **gradients, **dict(model.named_buffers())}


def assert_equal(ours: dict, stock: dict) -> None:
    assert ours.keys() == stock.keys()
    for name, tensor in stock.items():
        same = tensor is ours[name] is None or torch.equal(ours[name], tensor)
        assert same, name


def momentum_none(block: nn.Module) -> nn.Module:
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # statistics of all batches alike
    return block


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "FrozenBN"},
        {"norm": "BN"},
        {"norm": "naiveSyncBN"},
        {"norm": "BN", "wrap": momentum_none},
        {"norm": "BN", "wrap": LeakyBlock},
        {"norm": "GN", "wrap": NoisyBlock},
        {"norm": "FrozenBN", "freeze_at": 2},
    ],
    ids=lambda options: "-".join(str(getattr(v, "__name__", v)) for v in options.values()),
)
def test_losses_gradients_and_statistics_are_those_without(options):
    if options["norm"] == "GN":
        options = options | {"norm": lambda channels: nn.GroupNorm(2, channels)}
    model, twin = pair(**options)
    assert_equal(train(twin), train(model))


def test_mixed_precision_too():
    model, twin = pair()
    assert_equal(train(twin, dtype=torch.bfloat16), train(model, dtype=torch.bfloat16))


def test_blocks_of_torchvision():
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = IntermediateLayerGetter(resnet18(weights=None), {"layer2": "out"})
    twin = copy.deepcopy(model)
    assert checkpoint_stages(twin) == 2
    found = []
    for each in (twin, model):
        each.backbone(images())["out"].square().mean().backward()
        found.append(
            {name: p.grad for name, p in each.named_parameters()} | dict(each.named_buffers())
        )
    assert_equal(*found)


def calls(model: nn.Module) -> list[str]:
    """Names of the blocks, each time that one runs."""
    seen: list[str] = []
    for name, block in model.named_modules():
        if isinstance(block, BottleneckBlock | BasicBlock):
            block.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    return seen


def test_blocks_run_twice_in_training_and_once_otherwise():
    _, model = pair()
    seen = calls(model)
    model(images()).backward()
    assert sorted(seen) == sorted(2 * [f"backbone.res{s}.{i}" for s in (2, 3) for i in (0, 1)])
    seen.clear()
    with torch.no_grad():
        model(images())
    model.eval()(images()).backward()
    assert len(seen) == 8


def saved_bytes(stage: nn.Module, x: torch.Tensor) -> int:
    """Of the maps that autograd keeps, each memory counted once."""
    kept = {}
    known = {tensor.data_ptr() for tensor in (*stage.parameters(), *stage.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 4 and tensor.shape[-1] > 1 and tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = (tensor.nbytes, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stage(x)
    return sum(size for size, _ in kept.values())


def test_a_stage_keeps_its_input_only():
    model, twin = pair(norm="FrozenBN")
    x = torch.randn(2, 8, 8, 12)
    block = 4 + 4 + 16  # channels of each: inside twice, and its end
    assert saved_bytes(model.backbone.res2, x) == 4 * 2 * (8 + 2 * block) * 8 * 12
    assert saved_bytes(twin.backbone.res2, x) == 4 * 2 * 8 * 8 * 12


def test_names_and_copies():
    model, twin = pair()
    assert [n for n, _ in twin.named_modules()] == [n for n, _ in model.named_modules()]
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert_equal(train(copy.deepcopy(twin)), train(model))


@pytest.mark.parametrize("static_graph", [False, True])
def test_in_distributed_data_parallel_with_frozen_parts(tmp_path, static_graph):
    model, twin = pair(norm="FrozenBN", freeze_at=2)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        wrapped = DistributedDataParallel(
            twin, gradient_as_bucket_view=True, static_graph=static_graph, **buffers_stay()
        )
        found = train(wrapped)
    finally:
        torch.distributed.destroy_process_group()
    assert_equal({name.removeprefix("module."): t for name, t in found.items()}, train(model))


@pytest.mark.parametrize("backbone", [nn.Sequential(nn.Conv2d(3, 3, 1)), None])
def test_a_model_without_blocks_is_refused(backbone):
    model = nn.Module()
    if backbone is not None:
        model.backbone = backbone
    with pytest.raises(D2CityscapesError, match=r"CHECKPOINTING: .* has no residual blocks"):
        checkpoint_stages(model)

"""torch.compile of the dense part: which modules, that it runs, and that nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo
from detectron2.modeling import build_model as build_detectron2_model
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from torch import nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.layers.mini_dl import MiniDL
from d2_cityscapes.modeling.execution import compilation
from d2_cityscapes.modeling.execution.compilation import check_compiler, compile_dense_parts
from d2_cityscapes.modeling.execution.dense import use_channels_last
from d2_cityscapes.modeling.execution.folded_norm import fold_frozen_norms
from d2_cityscapes.modeling.execution.padding import pad_to_multiple
from d2_cityscapes.modeling.execution.recomputation import checkpoint_stages

pytestmark = pytest.mark.no_fake_gpu("torch.compile")


@pytest.fixture(autouse=True)
def compiler():
    """Each test begins without compiled graphs; PyTorch's limit is as before afterwards."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(cache_size_limit=8, accumulated_cache_size_limit=256):
        yield
    torch._dynamo.reset()


class Graphs:
    """Compiles nothing, but counts what it is asked to."""

    def __init__(self):
        self.compiled = self.ran = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list, mode: str = "") -> object:
        self.compiled += 1

        def run(*args):
            self.ran += 1
            return graph(*args)

        return run


class Model(nn.Module):
    """A small backbone alone."""

    def __init__(self, norm: str = "BN"):
        super().__init__()
        stage = ResNet.make_stage(BasicBlock, 1, in_channels=4, out_channels=6, norm=norm)
        self.backbone = ResNet(BasicStem(3, 4, norm), [stage])

    def forward(self, x):
        return self.backbone(x)["res2"]


def pair(norm: str = "BN") -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Model(norm)
    return model, copy.deepcopy(model)


def images(height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(x).square().mean().backward()
    return [p.grad for p in model.parameters()]


PARTS = {
    "GeneralizedRCNN": [],
    "SeamlessPanoptic": [f"sem_seg_head.p{k}" for k in (2, 3, 4, 5)],
}


@pytest.mark.parametrize("architecture", PARTS)
def test_backbone_rpn_head_and_semantic_levels_are_compiled(tiny_cfg, architecture):
    tiny_cfg.MODEL.META_ARCHITECTURE = architecture
    model = build_detectron2_model(tiny_cfg)
    names = list(model.state_dict())
    expected = ["backbone", "proposal_generator.rpn_head", *PARTS[architecture]]
    assert compile_dense_parts(model, backend=Graphs()) == expected
    assert list(model.state_dict()) == names


def test_of_the_minidl_head_each_level_is_compiled():
    model = nn.Module()
    model.backbone, model.sem_seg_head = nn.Identity(), nn.Module()
    model.sem_seg_head.levels = nn.ModuleDict({"p2": MiniDL(4, 4), "p5": MiniDL(4, 4)})
    found = compile_dense_parts(model, backend=Graphs())
    assert found == ["backbone", "sem_seg_head.levels.p2", "sem_seg_head.levels.p5"]


def test_losses_of_a_detector_are_those_without(tiny_cfg, batch):
    graphs = Graphs()
    torch.manual_seed(0)
    model = build_detectron2_model(tiny_cfg)
    twin = copy.deepcopy(model)
    compile_dense_parts(twin, backend=graphs)
    losses = []
    for each in (model, twin):
        torch.manual_seed(1)
        with EventStorage():
            losses.append(each(batch))
        sum(losses[-1].values()).backward()
    assert graphs.compiled == graphs.ran == 2
    for name, loss in losses[0].items():
        assert torch.equal(losses[1][name], loss), name
    for stock, ours in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, stock.grad)


def test_many_sizes_need_few_graphs_and_evaluation_its_own():
    graphs = Graphs()
    model, twin = pair()
    compile_dense_parts(twin, backend=graphs)
    for height in range(16, 112, 8):
        assert torch.equal(twin(images(height)), model(images(height)))
    assert (graphs.compiled, graphs.ran) == (2, 12)
    model.eval(), twin.eval()
    with torch.no_grad():
        for height in (24, 40, 64):
            assert torch.equal(twin(images(height)), model(images(height)))
    assert graphs.ran == 15


def test_padded_sizes_have_one_graph_each():
    """As of a training on many scales, whose batches are padded to few sizes."""
    graphs = Graphs()
    model, twin = pair()
    pad_to_multiple(twin, 32)
    compile_dense_parts(twin, mode="reduce-overhead", sizes_vary=False, backend=graphs)
    for short in range(33, 97, 7):
        batch = ImageList.from_tensors(
            [torch.randn(3, short, 2 * short)], twin.backbone.size_divisibility
        )
        assert torch.equal(twin(batch.tensor), model(batch.tensor))
    assert graphs.compiled == 4  # 64 x 96, 64 x 128, 96 x 160, 96 x 192
    assert graphs.ran == 10


def test_the_limit_is_for_each_part(monkeypatch):
    """PyTorch counts the variants of all modules together."""
    graphs = Graphs()
    monkeypatch.setattr(compilation, "_VARIANTS", 3)
    torch._dynamo.config.cache_size_limit = torch._dynamo.config.accumulated_cache_size_limit = 1
    model = nn.Module()
    model.backbone, model.sem_seg_head = nn.Conv2d(3, 4, 1), nn.Module()
    model.sem_seg_head.p2, model.sem_seg_head.p3 = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 6, 1)
    compile_dense_parts(model, sizes_vary=False, backend=graphs)
    for height in (16, 24, 32):
        features = model.backbone(images(height))
        model.sem_seg_head.p2(features), model.sem_seg_head.p3(features)
    assert graphs.compiled == graphs.ran == 9


def test_what_runs_uncompiled_beyond_the_limit_is_said(caplog, monkeypatch):
    graphs = Graphs()
    monkeypatch.setattr(compilation, "_VARIANTS", 2)
    torch._dynamo.config.cache_size_limit = 2
    model, twin = pair()
    compile_dense_parts(twin, sizes_vary=False, backend=graphs)
    with caplog.at_level("WARNING", logger=compilation.logger.name):
        for height in (16, 24, 32, 40):
            assert torch.equal(twin(images(height)), model(images(height)))
    assert graphs.compiled == 2
    said = [line for line in caplog.messages if line.startswith("MODEL.COMPILE: 2 variants")]
    assert said and "INPUT.SIZE_DIVISIBILITY" in said[0]


@pytest.mark.parametrize(("mode", "marks"), [("default", 0), ("reduce-overhead", 2)])
def test_cuda_graphs_learn_where_a_step_begins(monkeypatch, mode, marks):
    """Once for all parts of the model, outside of what is compiled."""
    seen = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: seen.append(0))
    _, model = pair()
    compile_dense_parts(model, mode=mode, backend=Graphs())
    for _ in range(2):
        model(images())
    assert len(seen) == marks


def test_more_variants_than_pytorchs_limit_stay_compiled():
    """As a schedule that unfreezes a little at a time makes them."""
    graphs = Graphs()
    _, model = pair()
    compile_dense_parts(model, backend=graphs)
    parameters = list(model.requires_grad_(False).parameters())
    assert len(parameters) > 8
    for parameter in parameters:
        parameter.requires_grad_(True)
        model(images())
    assert graphs.ran == len(parameters)


def test_what_is_unfrozen_in_mid_run_trains():
    model, twin = pair()
    compile_dense_parts(twin, backend=Graphs())
    for each in (model, twin):
        each.requires_grad_(False)
        each.backbone.res2.requires_grad_(True)
    assert twin.backbone.stem.conv1.weight.grad is None
    gradients(twin, images())
    assert twin.backbone.stem.conv1.weight.grad is None
    for each in (model, twin):
        each.requires_grad_(True)
    for ours, stock in zip(gradients(twin, images()), gradients(model, images()), strict=True):
        torch.testing.assert_close(ours, stock)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_with_all_the_other_options(dtype):
    """Through AOTAutograd, which makes the backward graph and would notice moved statistics."""
    model, twin = pair("FrozenBN")
    for each in (model, twin):
        each.backbone.res2[0].conv2.norm = nn.BatchNorm2d(6)
    fold_frozen_norms(twin)
    use_channels_last(twin)
    checkpoint_stages(twin)
    compile_dense_parts(twin, backend="aot_eager")
    found = []
    for each in (twin, model):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = each(images()).square().mean()
        loss.backward()
        found.append([loss, *(p.grad for p in each.parameters()), *each.buffers()])
    scale = 1e-5 if dtype is None else 0.05
    for ours, stock in zip(*found, strict=True):
        assert (ours - stock).abs().max() <= scale * stock.abs().max()
    moved = twin.backbone.res2[0].conv2.norm
    assert moved.num_batches_tracked == 1


def test_the_channels_last_hook_is_inside():
    _, model = pair()
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        seen.append([node.kwargs.get("memory_format") for node in graph.graph.nodes])
        return graph

    use_channels_last(model)
    compile_dense_parts(model, backend=backend)
    assert model(images()).is_contiguous(memory_format=torch.channels_last)
    assert any(torch.channels_last in formats for formats in seen)


def test_copies_run_uncompiled_and_agree():
    graphs = Graphs()
    _, twin = pair()
    compile_dense_parts(twin, backend=graphs)
    expected = twin(images())
    copied = copy.deepcopy(twin)
    assert torch.equal(copied(images()), expected)
    assert graphs.ran == 1


def test_a_real_compiler_gives_the_same_numbers():
    check_compiler("cpu")
    torch.manual_seed(0)
    model, x = nn.Module(), images()
    model.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    twin = copy.deepcopy(model)
    compile_dense_parts(twin)
    for each in (model, twin):
        each.backbone(x).square().mean().backward()
    for ours, stock in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, stock.grad, rtol=1e-4, atol=1e-6)


class TwoParts(nn.Module):
    """One compiled part behind another, as a semantic head behind a backbone."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.p2 = nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, x):
        return self.sem_seg_head.p2(self.backbone(x))


ON_GPU = [pytest.param("cuda", mode, marks=pytest.mark.gpu) for mode in compilation.MODES]


@pytest.mark.parametrize(("device", "mode"), [("cpu", "reduce-overhead"), *ON_GPU])
def test_steps_and_evaluations_of_few_sizes_are_those_without(device, mode):
    """With CUDA graphs, where the device has them: what they gave before must not be overwritten
    while it is needed."""
    check_compiler(device)
    torch.manual_seed(0)
    model = TwoParts().to(device)
    twin = copy.deepcopy(model)
    compile_dense_parts(twin, mode=mode, sizes_vary=False)
    optimizers = [torch.optim.SGD(each.parameters(), 0.1) for each in (model, twin)]
    with torch.backends.cudnn.flags(allow_tf32=False):
        for height in (16, 24, 16, 24, 16):
            x = images(height).to(device)
            for each, optimizer in zip((model, twin), optimizers, strict=True):
                loss = each(x).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                torch.testing.assert_close(twin(x), model(x), rtol=1e-3, atol=1e-4)
    for ours, stock in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-3, atol=1e-5)


def test_a_machine_without_a_compiler_is_refused_in_one_line(monkeypatch):
    def fail(function, **options):
        def run(x):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n\nmore lines")

        return run

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(D2CityscapesError) as caught:
        check_compiler("cpu")
    message = str(caught.value)
    assert message.startswith("MODEL.COMPILE: torch.compile does not work on this machine")
    assert message.endswith("(InvalidCxxCompiler: No working C++ compiler found)")
    assert "\n" not in message


def test_a_model_without_dense_parts_is_refused():
    with pytest.raises(D2CityscapesError, match=r"MODEL.COMPILE: Linear has no backbone"):
        compile_dense_parts(nn.Linear(2, 2))

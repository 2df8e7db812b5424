"""Models with a network of timm: each trains, and the options that span a model act in it."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.utils.events import EventStorage
from torch import nn

from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling import build_model
from d2_cityscapes.modeling.execution.compilation import compile_dense_parts
from d2_cityscapes.modeling.execution.dense import use_channels_last
from d2_cityscapes.modeling.execution.recomputation import checkpoint_stages


def with_timm(cfg, name: str, backbone: str = "build_timm_fpn_backbone", **values):
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.TIMM.NAME = name
    for key, value in values.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def gradients(model: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor | None]:
    with EventStorage():
        sum(model.train()(batch).values()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
@pytest.mark.parametrize("architecture", ["StagedRCNN", "SeamlessPanoptic", "StagedSegmentor"])
def test_models_train_and_predict(tiny_cfg, batch, name, architecture):
    cfg = with_timm(tiny_cfg, name)
    cfg.MODEL.META_ARCHITECTURE = architecture
    model = build_model(cfg)
    found = gradients(model, batch)
    assert [key for key, g in found.items() if g is None or not g.isfinite().all()] == []
    with torch.no_grad():
        outputs = model.eval()(batch)
    wanted = {"SeamlessPanoptic": {"instances", "sem_seg", "panoptic_seg"}}
    assert set(outputs[0]) == wanted.get(
        architecture, {"instances"} if architecture == "StagedRCNN" else {"sem_seg"}
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_the_seamless_fpn(tiny_cfg, batch, name):
    """Norm and leaky ReLU behind each of its convolutions, and levels made from C5."""
    cfg = with_timm(tiny_cfg, name, "build_seamless_timm_fpn_backbone")
    cfg.MODEL.FPN.NORM, cfg.MODEL.FPN.EXTRA_LEVELS = "BN", 2
    backbone = build_backbone(cfg)
    assert list(backbone(torch.zeros(2, 3, 64, 128))) == ["p2", "p3", "p4", "p5", "p6", "p7"]
    for conv in (*backbone.lateral_convs, *backbone.output_convs, *backbone.top_block.children()):
        assert isinstance(conv.norm, nn.BatchNorm2d)
        assert isinstance(conv.activation, nn.LeakyReLU)
    c5 = backbone.bottom_up.output_shape()["res5"].channels
    assert backbone.top_block.p6.in_channels == c5 and backbone.bottom_up.size_divisibility == 32
    with pytest.raises(D2CityscapesError, match="takes no maps of one size: use"):
        build_backbone(with_timm(tiny_cfg, "test_vit", "build_seamless_timm_fpn_backbone"))


def deeplab(cfg, name: str, **values) -> nn.Module:
    cfg = with_timm(cfg.clone(), name, **values)
    cfg.MODEL.META_ARCHITECTURE = "DeepLabV3Segmentor"
    cfg.MODEL.DEEPLAB.AUX_LOSS_WEIGHT = 0.4
    return build_model(cfg)


@pytest.mark.parametrize(
    ("name", "stride", "rates"),
    [
        ("test_resnet", 8, [12, 24, 36]),
        ("test_resnet", 16, [6, 12, 18]),
        ("test_convnext", 16, [6, 12, 18]),
        ("test_efficientnet", 8, [12, 24, 36]),
    ],
)
def test_deeplab_with_dilated_convolutions(tiny_cfg, batch, name, stride, rates):
    model = deeplab(tiny_cfg, name, OUTPUT_STRIDE=stride)
    maps = model.backbone(torch.zeros(1, 3, 64, 128))
    assert {key: x.shape[-2:] for key, x in maps.items()} == {
        "aux": (64 // min(stride, 16), 128 // min(stride, 16)),
        "out": (64 // stride, 128 // stride),
    }
    assert [branch[0].dilation[0] for branch in list(model.classifier[0].convs)[1:4]] == rates
    assert [key for key, g in gradients(model, batch).items() if g is None] == []
    with torch.no_grad():
        assert model.eval()(batch)[0]["sem_seg"].shape == (19, 64, 128)


def test_deeplab_refuses_what_has_its_own_strides_alone(tiny_cfg):
    with pytest.raises(D2CityscapesError, match="test_vit has its own strides alone"):
        deeplab(tiny_cfg, "test_vit")
    with pytest.raises(D2CityscapesError, match="OUTPUT_STRIDE 4: use 8 or 16"):
        deeplab(tiny_cfg, "test_resnet", OUTPUT_STRIDE=4)


def test_a_deeplab_hands_its_encoder_on_as_it_is(tiny_cfg, tmp_path, caplog):
    first = deeplab(tiny_cfg, "test_resnet")
    torch.save({"model": first.state_dict()}, tmp_path / "model_final.pth")
    second = build_model(with_timm(tiny_cfg, "test_resnet"))
    Checkpointer(second).resume_or_load(str(tmp_path / "model_final.pth"), resume=False)
    ours, theirs = second.state_dict(), first.state_dict()
    body = [key for key in ours if key.startswith("backbone.bottom_up.")]
    assert len(body) > 30 and all(torch.equal(ours[key], theirs[key]) for key in body)
    assert "in the file, but not in the model: classifier" in caplog.text


def test_freezing_by_name(tiny_cfg, batch):
    """A stage, the whole network, and the pyramid, by the same patterns as with a ResNet."""
    for name, pattern, frozen in [
        ("test_resnet", "backbone.bottom_up.net.layer1", "backbone.bottom_up.net.layer1."),
        ("test_efficientnet", "backbone.bottom_up", "backbone.bottom_up."),
        ("test_vit", "backbone.fpn_*", "backbone.fpn_"),
        ("test_vit", "backbone.bottom_up.net.blocks.[01]", "backbone.bottom_up.net.blocks.0."),
    ]:
        cfg = with_timm(tiny_cfg.clone(), name)
        cfg.MODEL.META_ARCHITECTURE = "StagedRCNN"
        cfg.MODEL.FREEZE.MODULES = [pattern]
        model = build_model(cfg)
        before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(frozen)}
        found = gradients(model, batch)
        assert before
        for key, value in before.items():
            assert found.get(key) is None and torch.equal(model.state_dict()[key], value), key
        assert any(g is not None for key, g in found.items() if key.startswith("backbone."))


class Body(nn.Module):
    """A backbone alone, as a model."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)

    def forward(self, x):
        return sum(level.square().mean() for level in self.backbone(x).values())


NETWORKS = {"test_resnet": 4, "test_convnext": 4, "test_efficientnet": 4, "test_vit": 6}


def step(model: nn.Module) -> tuple[dict, int]:
    """Loss, gradients and buffers of a step, and the bytes that were kept for it."""
    kept: dict[int, int] = {}
    own = {p.data_ptr() for p in model.parameters()}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    torch.manual_seed(2)
    image = torch.randn(2, 3, 64, 128)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model.train()(image)
    loss.backward()
    found = {"loss": loss.detach()} | {k: p.grad for k, p in model.named_parameters()}
    return found | dict(model.named_buffers()), sum(kept.values())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_checkpointed_stages_give_the_same_from_less(timm_cfg, name):
    torch.manual_seed(0)
    model = Body(timm_cfg(name, DROP_PATH=0.5))
    twin = copy.deepcopy(model)
    assert checkpoint_stages(twin) == NETWORKS[name]
    (ours, less), (stock, more) = step(twin), step(model)
    assert all(torch.equal(ours[key], value) for key, value in stock.items())
    assert less < 0.8 * more


@pytest.mark.parametrize("name", list(NETWORKS))
@torch.no_grad()
def test_pixel_by_pixel_and_in_mixed_precision_it_computes_the_same(timm_cfg, name):
    torch.manual_seed(0)
    model = Body(timm_cfg(name)).eval()
    twin = copy.deepcopy(model)
    use_channels_last(twin)
    x = torch.randn(1, 3, 64, 128)
    expected, found = model.backbone(x), twin.backbone(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.backbone(x)
    for key, level in expected.items():
        torch.testing.assert_close(found[key], level, rtol=1e-3, atol=1e-4)
        assert rough[key].dtype == torch.bfloat16
        assert (rough[key] - level).abs().mean() < 0.1 * level.abs().mean()
    assert found["p3"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow) for x in NETWORKS])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_in_one_piece_it_computes_the_same(timm_cfg, name, checkpointed):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = Body(timm_cfg(name))
    twin = copy.deepcopy(model)
    if checkpointed:
        checkpoint_stages(twin)
    compile_dense_parts(twin, backend="aot_eager")
    for size in ((64, 128), (96, 64)):
        x = torch.randn(1, 3, *size)
        model(x).backward()
        twin(x).backward()
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]

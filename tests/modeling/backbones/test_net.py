"""A network of timm as a backbone: its maps are timm's, at any size, whatever the pictures' format.

Shape letters: N pictures, H, W pixels.
"""

from __future__ import annotations

import re

import pytest
import timm
import torch
from detectron2.modeling import build_backbone
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.backbones.pixels import settle_pixels


@timm.models.register_model
def tiny_swin(pretrained=False, **kwargs):
    """timm has no Swin for tests; a map of the last stage is one window at 224 x 224 pixels."""
    kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None)
    kwargs.pop("cache_dir", None)
    return SwinTransformer(embed_dim=8, depths=(1, 1, 1, 2), num_heads=(1, 1, 2, 2), **kwargs)


HIERARCHICAL = ["test_resnet", "test_convnext", "test_efficientnet", "tiny_swin"]
PLAIN = ["test_vit", "test_vit3"]


def theirs_of(ours: nn.Module, name: str) -> nn.Module:
    """timm's own feature network with the same weights, which have its names."""
    options = {"strict_img_size": False, "always_partition": True} if "swin" in name else {}
    if "vit" in name:
        options = {"dynamic_img_size": True}
    if "swin" in name:
        theirs = tiny_swin(**options)
        theirs.load_state_dict(ours.state_dict(), strict=False)
        return theirs.eval()
    theirs = timm.create_model(name, features_only=True, **options)
    wanted = theirs.state_dict()

    def named(key: str) -> str:
        for form in (key, f"model.{key}", re.sub(r"^([a-z]+)\.(\d+)\.", r"\1_\2.", key)):
            if form in wanted:
                return form
        raise AssertionError(key)

    theirs.load_state_dict({named(key): value for key, value in ours.state_dict().items()})
    return theirs.eval()


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_vit", "tiny_swin"])
@torch.no_grad()
def test_maps_are_timms_of_the_same_picture(timm_cfg, name, settled, channels):
    """Normalised by the weights' numbers: means of 0.5, or those of ImageNet in EfficientNet."""
    torch.manual_seed(0)
    cfg = timm_cfg(name)
    cfg.INPUT.FORMAT = channels
    if settled:
        cfg = settle_pixels(cfg)
    net = build_backbone(cfg).bottom_up.eval()
    rgb = torch.randint(0, 256, (1, 3, 96, 64)).float()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    given = rgb if channels == "RGB" else rgb.flip(1)
    found = list(net((given - mean) / std).values())

    about = timm.get_pretrained_cfg(name)
    mean, std = about.mean if about else (0.485, 0.456, 0.406), about.std if about else None
    std = std or (0.229, 0.224, 0.225)
    wanted = (rgb / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    theirs = theirs_of(net.net, name)
    if name == "tiny_swin":
        expected = theirs.forward_intermediates(wanted, intermediates_only=True)
    else:
        expected = theirs(wanted)[-len(found) :]
    assert len(found) == (1 if name == "test_vit" else 4)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", HIERARCHICAL + PLAIN)
def test_levels_of_any_size_and_a_gradient_for_every_parameter(timm_cfg, name):
    backbone = build_backbone(timm_cfg(name))
    unit = backbone.size_divisibility
    assert unit == 32
    for height, width in [(unit, unit), (3 * unit, 5 * unit), (7 * unit, 2 * unit)]:
        maps = backbone(torch.randn(2, 3, height, width))
        assert list(maps) == ["p2", "p3", "p4", "p5", "p6"]
        for level, (key, shape) in zip(range(2, 7), backbone.output_shape().items(), strict=True):
            assert (shape.stride, shape.channels) == (2**level, 16)
            size = [max(1, -(-x // 2**level)) for x in (height, width)]
            assert maps[key].shape == (2, 16, *size)
    sum(x.square().mean() for x in maps.values()).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


@timm.models.register_model
def spare_swin(pretrained=False, **kwargs):
    """With parts that no map depends on."""
    net = tiny_swin(**kwargs)
    net.spare, net.layers[1].spare = (
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
        nn.Linear(2, 2),
    )
    net.token = nn.Parameter(torch.zeros(2))
    return net


def test_what_no_map_depends_on_is_taken_away(timm_cfg):
    """Or data-parallel training would wait for its gradients."""
    backbone = build_backbone(timm_cfg("spare_swin"))
    trains = {name for name, p in backbone.named_parameters() if p.requires_grad}
    wanted = {name for name, _ in build_backbone(timm_cfg("tiny_swin")).named_parameters()}
    assert trains == wanted
    assert not [name for name, _ in backbone.named_parameters() if "spare" in name]


def test_windows_are_shifted_in_every_stage_whatever_the_weights_pictures(timm_cfg):
    net = build_backbone(timm_cfg("tiny_swin")).bottom_up.net
    assert net.layers[3].blocks[1].shift_size == (3, 3)


def test_patches_that_no_pyramid_stands_on_become_16_pixels(timm_cfg):
    net = build_backbone(timm_cfg("eva02_tiny_patch14_224")).bottom_up
    assert net.output_shape()["last"].stride == 16
    assert net.net.patch_embed.proj.weight.shape[-2:] == (16, 16)


@pytest.mark.parametrize("key", ["OUT_FEATURES", "IN_FEATURES"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_levels_may_be_chosen_and_what_lies_behind_is_left_out(timm_cfg, key, name):
    cfg = timm_cfg(name)
    section = cfg.MODEL.TIMM if key == "OUT_FEATURES" else cfg.MODEL.FPN
    section[key] = ["res3", "res4"]
    backbone = build_backbone(cfg)
    assert list(backbone(torch.randn(1, 3, 64, 64))) == ["p3", "p4", "p5"]
    if name == "test_resnet":
        assert not [key for key, _ in backbone.named_parameters() if "layer4" in key]
        assert backbone.size_divisibility == 16


STEM = {
    "test_resnet": ["conv1.", "bn1."],
    "test_convnext": ["stem."],
    "test_efficientnet": ["conv_stem.", "bn1.", "blocks.0."],
    "tiny_swin": ["patch_embed."],
    "test_vit": ["patch_embed.", "pos_embed", "cls_token"],
}
FIRST = {
    "test_resnet": "layer1.", "test_convnext": "stages.0.", "test_efficientnet": "blocks.1.",
    "tiny_swin": "layers.0.", "test_vit": ("blocks.0.", "blocks.1."),
}  # fmt: skip


@pytest.mark.parametrize("name", list(STEM))
def test_freeze_at_freezes_stem_and_stages(timm_cfg, name):
    """As in Detectron2's ResNets, with frozen norms; a quarter of a ViT's blocks is a stage."""
    everything = build_backbone(timm_cfg(name)).bottom_up.net
    begins = {1: tuple(STEM[name])}
    first = FIRST[name]
    begins[2] = (*begins[1], *([first] if isinstance(first, str) else first))
    begins[5] = ("",)
    for count, starts in begins.items():
        cfg = timm_cfg(name)
        cfg.MODEL.BACKBONE.FREEZE_AT = count
        backbone = build_backbone(cfg)
        own = dict(backbone.bottom_up.net.named_parameters())
        trains = {key for key, p in own.items() if p.requires_grad}
        wanted = {key for key, _ in everything.named_parameters() if not key.startswith(starts)}
        assert trains == wanted
        before = {key: value.clone() for key, value in backbone.named_buffers()}
        backbone.train()(torch.randn(1, 3, 64, 64))
        for key, value in backbone.named_buffers():
            frozen = key.removeprefix("bottom_up.net.").startswith(starts)
            assert torch.equal(value, before[key]) or not frozen, key


def test_norms_of_another_kind(timm_cfg):
    frozen = build_backbone(timm_cfg("test_efficientnet", NORM="FrozenBN")).train()
    before = {key: value.clone() for key, value in frozen.named_buffers()}
    frozen(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[key]) for key, value in frozen.named_buffers())
    assert not [key for key, _ in frozen.bottom_up.named_parameters() if ".bn" in key]
    synced = build_backbone(timm_cfg("test_resnet", NORM="SyncBN"))
    kinds = {type(x) for x in synced.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "tiny_swin"])
def test_drop_path_leaves_blocks_out_in_training_alone(timm_cfg, name):
    image = torch.randn(1, 3, 64, 64)
    for rate in (0.0, 0.9):
        torch.manual_seed(0)
        net = build_backbone(timm_cfg(name, DROP_PATH=rate)).bottom_up
        last = list(net.output_shape())[-1]
        drawn = [net.train()(image)[last] for _ in range(4)]
        assert all(torch.equal(x, drawn[0]) for x in drawn) == (rate == 0)
        assert torch.equal(net.eval()(image)[last], net.eval()(image)[last])


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("", {}, "MODEL.TIMM.NAME is empty: name a network"),
        ("convnxt_tiny", {}, "no such network; nearest: convnext_tiny"),
        ("resnet18.in22k", {}, "no weights of this tag; there are resnet18.a1_in1k"),
        ("timm/resnet18.a1_in1k", {}, r"weights of elsewhere go into MODEL\.TIMM\.FILE"),
        ("test_vit_relpos", {}, "takes no pictures of 64 x 96.*doesn't match model"),
        ("dla46_c", {"DROP_PATH": 0.1}, "DROP_PATH 0.1: dla46_c has no stochastic depth"),
        ("test_vit", {"DROP_PATH": 1.0}, "DROP_PATH 1.0: use a number from 0, below 1"),
        ("test_convnext", {"NORM": "FrozenBN"}, "has no batch norms: set it to ''"),
        ("test_resnet", {"NORM": "GN"}, "NORM 'GN': use FrozenBN, SyncBN"),
        ("test_resnet", {"OUT_FEATURES": ["res1"]}, "use res2, res3, res4, res5"),
        ("test_resnet", {"OUT_FEATURES": ["res2", "res4"]}, "in a row"),
    ],
)
def test_what_cannot_be_built_is_one_line(timm_cfg, name, values, message):
    with pytest.raises(D2CityscapesError, match=message) as found:
        build_backbone(timm_cfg(name, **values))
    assert "\n" not in str(found.value)


def test_levels_that_the_network_has_not(timm_cfg):
    cfg = timm_cfg("test_resnet", OUT_FEATURES=["res3", "res4"])
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3"]
    with pytest.raises(D2CityscapesError, match="OUT_FEATURES has no res2: leave out one"):
        build_backbone(cfg)


def test_folded_norms_are_refused(timm_cfg):
    cfg = timm_cfg("test_resnet", NORM="FrozenBN")
    cfg.MODEL.RESNETS.FOLD_FROZEN_NORM = True
    with pytest.raises(D2CityscapesError, match="NORM True: not with a network of timm"):
        build_backbone(cfg)


def test_a_network_without_stages_in_a_row_is_not_frozen_by_number(timm_cfg):
    cfg = timm_cfg("hrnet_w18_small")
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with pytest.raises(D2CityscapesError, match=r"FREEZE_AT 2: hrnet_w18_small.* set it to 0"):
        build_backbone(cfg)


def test_without_timm_one_line_names_the_extra(timm_cfg, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(D2CityscapesError, match=r"pip install 'd2_cityscapes\[timm\]'"):
        build_backbone(timm_cfg("test_vit"))

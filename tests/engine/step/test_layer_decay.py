"""SOLVER.LAYER_DECAY: layer by layer of a timm net, against timm's own rates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.step.layer_decay import layers_below
from d2_cityscapes.engine.step.optimizer import build_optimizer

timm = pytest.importorskip("timm")
param_groups_layer_decay = pytest.importorskip("timm.optim").param_groups_layer_decay


class Pyramid(nn.Module):
    """A feature net somewhere in a model, beside layers that have names of its own in them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Module()
        self.backbone.bottom_up.net = timm.create_model(name, features_only=True)
        self.backbone.fpn_lateral2 = nn.Sequential()
        self.backbone.fpn_lateral2.norm = nn.BatchNorm2d(2)
        self.blocks = nn.ModuleList([nn.Linear(2, 2)])


def _config(name: str, *opts: str):
    cfg = load_config("", ["SOLVER.BASE_LR", "1.0", "SOLVER.LAYER_DECAY", "0.5", *opts]).clone()
    cfg.defrost()
    cfg.MODEL.TIMM = cfg.MODEL.get("TIMM", type(cfg)())
    cfg.MODEL.TIMM.NAME = name
    return cfg


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet"])
def test_rates_are_timms_own(name):
    """Of its whole classifier, whose head is the layer above; other parts have no decay."""
    with torch.device("meta"):
        model, whole = Pyramid(name), timm.create_model(name)
    groups = param_groups_layer_decay(whole, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    expected = {name: scale[id(p)] for name, p in whole.named_parameters()}
    cfg = _config(name)
    name_of = {id(p): name for name, p in model.named_parameters()}
    seen = set()
    for group in build_optimizer(cfg, model).param_groups:
        for parameter in group["params"]:
            name = name_of[id(parameter)]
            if not name.startswith("backbone.bottom_up."):
                assert group["lr"] == 1.0, name
                continue
            own = name.removeprefix("backbone.bottom_up.net.").removeprefix("model.")
            for stage in range(4):
                own = own.replace(f"stages_{stage}.", f"stages.{stage}.")
            own = own.replace("stem_0.", "stem.0.").replace("stem_1.", "stem.1.")
            assert group["lr"] == pytest.approx(expected[own]), name
            seen.add(group["lr"])
    assert len(seen) > 3 and max(seen) == 0.5


def test_layers_of_a_plain_vit_by_hand():
    """L = 6 blocks: embeddings are layer 0, at 0.5 ** 7."""
    with torch.device("meta"):
        model = Pyramid("test_vit")
    below = layers_below(_config("test_vit"), model)
    place = "backbone.bottom_up.net.model."
    assert below[f"{place}pos_embed"] == below[f"{place}patch_embed.proj.weight"] == 7
    assert [below[f"{place}blocks.{n}.attn.qkv.weight"] for n in range(6)] == [6, 5, 4, 3, 2, 1]
    assert "backbone.fpn_lateral2.norm.weight" not in below and "blocks.0.weight" not in below


def test_multipliers_are_factors_beside_it(log):
    with torch.device("meta"):
        model = Pyramid("test_vit")
    cfg = _config("test_vit", "SOLVER.LR_MULTIPLIERS", '[["backbone.*", 0.1]]')
    name_of = {id(p): name for name, p in model.named_parameters()}
    rates = {
        name_of[id(parameter)]: group["lr"]
        for group in build_optimizer(cfg, model).param_groups
        for parameter in group["params"]
    }
    assert rates["backbone.bottom_up.net.model.blocks.4.norm1.weight"] == pytest.approx(0.025)
    assert rates["backbone.fpn_lateral2.norm.weight"] == 0.1 and rates["blocks.0.weight"] == 1.0
    assert "rate x 0.1: backbone.*, rate x 0.5^2: layers above" in log.text

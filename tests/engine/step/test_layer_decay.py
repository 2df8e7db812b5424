"""SOLVER.LAYER_DECAY: layer by layer, against timm's own rates and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2_cityscapes.engine.setup import ConfigError, load_config
from d2_cityscapes.engine.step.layer_decay import layers_below
from d2_cityscapes.engine.step.optimizer import build_optimizer


class Pyramid(nn.Module):
    """A network in a model, beside layers that have names like its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Module()
        self.backbone.bottom_up.net = net
        self.backbone.norm = nn.BatchNorm2d(2)
        self.blocks = nn.ModuleList([nn.Linear(2, 2)])


PLACE = "backbone.bottom_up.net."


def _of_timm(name: str, **options) -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        return timm.create_model(name, **options)


def _rates(model: nn.Module, *opts: str) -> dict[str, float]:
    cfg = load_config("", ["SOLVER.BASE_LR", "1.0", "SOLVER.LAYER_DECAY", "0.5", *opts])
    name_of = {id(p): name for name, p in model.named_parameters()}
    return {
        name_of[id(parameter)]: group["lr"]
        for group in build_optimizer(cfg, model).param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet"])
def test_rates_are_timms_own(name):
    """Of its whole classifier, whose head is the layer above; other parts have no decay."""
    whole = _of_timm(name)
    groups = pytest.importorskip("timm.optim").param_groups_layer_decay(whole, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    expected = {PLACE + key: scale[id(p)] for key, p in whole.named_parameters()}
    rates = _rates(Pyramid(_of_timm(name, num_classes=0)))
    own = {key: rate for key, rate in rates.items() if key.startswith(PLACE)}
    assert own == pytest.approx({key: expected[key] for key in own})
    assert len(set(own.values())) > 3 and 0.5 in own.values()
    assert {rate for key, rate in rates.items() if key not in own} == {1.0}


def test_layers_of_a_plain_vit_by_hand():
    """L = 6 blocks: embeddings are layer 0, at 0.5 ** 7."""
    below = layers_below(Pyramid(_of_timm("test_vit", num_classes=0)), 0.5)
    assert below[f"{PLACE}pos_embed"] == below[f"{PLACE}patch_embed.proj.weight"] == 7
    assert [below[f"{PLACE}blocks.{n}.attn.qkv.weight"] for n in range(6)] == [6, 5, 4, 3, 2, 1]
    assert "backbone.norm.weight" not in below and "blocks.0.weight" not in below


def test_layers_of_an_eomt_by_hand():
    transformers = pytest.importorskip("transformers")
    config = transformers.EomtConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, image_size=32, num_blocks=1
    )
    with torch.device("meta"):
        network = transformers.EomtForUniversalSegmentation(config)
    below = layers_below(Pyramid(network), 0.5)
    assert below[f"{PLACE}embeddings.cls_token"] == 4
    assert [below[f"{PLACE}layers.{n}.mlp.fc1.weight"] for n in range(3)] == [3, 2, 1]
    assert not {f"{PLACE}layernorm.weight", f"{PLACE}class_predictor.weight"} & below.keys()


def test_multipliers_are_factors_beside_it(log):
    model = Pyramid(_of_timm("test_vit", num_classes=0))
    rates = _rates(model, "SOLVER.LR_MULTIPLIERS", '[["backbone.*", 0.1]]')
    assert rates[f"{PLACE}blocks.4.norm1.weight"] == pytest.approx(0.025)
    assert rates["backbone.norm.weight"] == 0.1 and rates["blocks.0.weight"] == 1.0
    assert "rate x 0.1: backbone.*, rate x 0.5^2: layers above" in log.text


def test_a_model_without_known_layers_is_refused():
    with pytest.raises(ConfigError, match=r"LAYER_DECAY 0.5: the model has no network of timm"):
        _rates(Pyramid(nn.Linear(2, 2)))

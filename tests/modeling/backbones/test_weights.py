"""Weights of timm: from a file or folder, with their licence; fetched only where they are used."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest
import timm
import torch
from detectron2.modeling import build_backbone
from safetensors.torch import save_file

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.backbones.weights import log_licence, weights_of

NAME = "test_convnext"


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """What timm would publish: the whole network, with its classifier."""
    torch.manual_seed(3)
    return timm.create_model(NAME).state_dict()


@pytest.fixture
def folder(published, tmp_path):
    """As on the Hub."""
    save_file(published, tmp_path / "model.safetensors")
    about = {"tag": "r160_in1k", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = {"architecture": NAME, "num_classes": 1000, "pretrained_cfg": about}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def build(timm_cfg, file, name=NAME, **values):
    return build_backbone(timm_cfg(name, PRETRAINED=True, FILE=str(file), **values)).bottom_up.net


@pytest.mark.parametrize("kind", ["folder", "model.safetensors", "whole.pth", "nested.pth"])
def test_of_a_file_or_folder(timm_cfg, folder, published, kind, caplog):
    torch.save(published, folder / "whole.pth")
    torch.save({"epoch": 3, "state_dict": published}, folder / "nested.pth")
    with caplog.at_level(logging.INFO, "d2_cityscapes"):
        net = build(timm_cfg, folder if kind == "folder" else folder / kind)
    assert all(torch.equal(x, published[key]) for key, x in net.state_dict().items())
    assert len(list(net.state_dict())) > 30
    assert "test_convnext.r160_in1k: timm's weights, licence apache-2.0, from" in caplog.text


def test_patches_of_14_pixels_are_resampled(timm_cfg, tmp_path):
    name = "eva02_tiny_patch14_224"
    whole = timm.create_model(name)
    with torch.no_grad():
        whole.patch_embed.proj.weight.fill_(0.5)
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    net = build(timm_cfg, tmp_path, name)
    assert torch.equal(net.blocks[3].mlp.fc2.weight, whole.blocks[3].mlp.fc2.weight)
    weight = net.patch_embed.proj.weight
    assert weight.shape[-2:] == (16, 16) and weight.std() < 0.1 and 0.3 < weight.mean() < 0.5


def test_not_loaded_where_the_model_has_weights_of_its_own(timm_cfg):
    """Of an evaluation, or of a later stage; so the file may be gone by then."""
    cfg = timm_cfg(NAME, PRETRAINED=True, FILE="/gone")
    cfg.MODEL.WEIGHTS = "model_final.pth"
    build_backbone(cfg)
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(D2CityscapesError, match=r"MODEL\.TIMM\.FILE /gone: no such file"):
        build_backbone(cfg)


def test_files_that_do_not_fit(timm_cfg, folder, published, tmp_path):
    def refused(match: str, file, **values) -> None:
        with pytest.raises(D2CityscapesError, match=match) as found:
            build(timm_cfg, file, **values)
        assert "\n" not in str(found.value)

    part = {key: x for key, x in published.items() if "stages.3.blocks" not in key}
    torch.save(part, tmp_path / "part.pth")
    refused(r"lacks \d+ tensors of test_convnext.r160_in1k, e.g. stages.3", tmp_path / "part.pth")
    torch.save({"a": 1}, tmp_path / "other.pth")
    refused("holds no state dict", tmp_path / "other.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 64)
    refused("bad.safetensors: cannot be read as weights", tmp_path / "bad.safetensors")
    refused("lacks 75 tensors of test_resnet", folder / "model.safetensors", name="test_resnet")
    narrow = dict(published) | {"stem.0.bias": torch.zeros(5)}
    torch.save(narrow, tmp_path / "narrow.pth")
    refused("no weights of test_convnext.*size mismatch for stem.0.bias", tmp_path / "narrow.pth")
    refused("of test_convnext, not test_resnet: set NAME", folder, name="test_resnet")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.485, 0.456, 0.406]
    (folder / "config.json").write_text(json.dumps(config))
    refused("pictures of mean .0.485.*, where test_convnext.r160_in1k has .0.5", folder)
    os.remove(folder / "model.safetensors")
    (folder / "config.json").unlink()
    refused("has no model.safetensors or pytorch_model.bin", folder)


def test_a_hub_out_of_reach_is_one_line(timm_cfg, monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(D2CityscapesError, match=r"FILE") as found:
        build_backbone(timm_cfg(NAME, PRETRAINED=True))
    text = str(found.value)
    assert text.startswith(
        "MODEL.TIMM.PRETRAINED: weights of test_convnext.r160_in1k cannot be had from hf-hub "
        "timm/test_convnext.r160_in1k (Name or service not known); without a network"
    )
    assert "\n" not in text


def test_a_network_without_published_weights(timm_cfg):
    with pytest.raises(D2CityscapesError, match="timm has no weights of test_vit_relpos"):
        build_backbone(timm_cfg("test_vit_relpos", PRETRAINED=True))


def test_the_table_of_the_docs_is_what_timm_says(timm_cfg):
    """Name, million parameters without the classifier, and licence."""
    page = Path(__file__).resolve().parents[3] / "docs" / "recipes.md"
    rows = re.findall(r"^\| `(\S+\.\S+)` \| ([\d.]+) \| (\S+) \|$", page.read_text(), re.MULTILINE)
    assert len(rows) == 7
    for name, millions, licence in rows:
        assert weights_of(name).name == name and weights_of(name).licence == licence
        with torch.device("meta"):
            net = timm.create_model(name, num_classes=0)
        net.prune_intermediate_layers([-1], prune_norm=True)
        assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f}" == millions, name


def test_what_a_licence_forbids_is_warned_of(caplog):
    with caplog.at_level(logging.INFO, "d2_cityscapes"):
        log_licence(weights_of("resnet18.a1_in1k"))
        log_licence(weights_of("vit_small_patch16_dinov3"))
    free, asked = caplog.records
    assert free.levelname == "INFO" and "licence apache-2.0" in free.getMessage()
    assert asked.levelname == "WARNING" and "licence dinov3-license" in asked.getMessage()
    assert "read it before you use" in asked.getMessage()

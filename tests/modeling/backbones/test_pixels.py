"""Pictures as the weights want them: taken from timm, or refused with what to write."""

from __future__ import annotations

import re

import pytest
import yaml
from detectron2.config import CfgNode

import d2_cityscapes as d2c
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling import build_model
from d2_cityscapes.modeling.backbones.pixels import settle_pixels

IMAGENET = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def opts(name: str, *more: str) -> list[str]:
    return [
        "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", name,
        "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.DEVICE", "cpu", *more,
    ]  # fmt: skip


def numbers(cfg: CfgNode) -> tuple[list[float], list[float]]:
    return list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)


def test_a_config_that_sets_nothing_gets_those_of_the_weights():
    assert numbers(load_config("", opts("test_convnext"))) == ([127.5] * 3, [127.5] * 3)
    rgb = load_config("", opts("test_efficientnet", "INPUT.FORMAT", "RGB"))
    assert numbers(rgb) == IMAGENET
    bgr = load_config("", opts("test_efficientnet"))
    assert numbers(bgr) == (IMAGENET[0][::-1], IMAGENET[1][::-1]) and bgr.INPUT.FORMAT == "BGR"


def test_by_tag():
    """One network, two weights: those of JFT take pictures from -1 to 1."""
    for tag, mean in (("ns_jft_in1k", 123.675), ("ap_in1k", 127.5)):
        name = f"tf_efficientnet_b0.{tag}"
        cfg = load_config("", opts(name, "INPUT.FORMAT", "RGB"))
        assert cfg.MODEL.PIXEL_MEAN[0] == mean, name


def test_written_and_read_again_it_stays(tmp_path):
    first = load_config("", opts("test_efficientnet"))
    (tmp_path / "config.yaml").write_text(first.dump())
    assert numbers(load_config(tmp_path / "config.yaml")) == numbers(first)


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_another_setting_is_refused_with_what_to_write(channels):
    wrong = ["INPUT.FORMAT", channels, "MODEL.PIXEL_STD", "[1.0, 1.0, 2.0]"]
    with pytest.raises(D2CityscapesError, match="not those of the weights of test_eff") as found:
        load_config("", opts("test_efficientnet", *wrong))
    written = re.findall(r"(MODEL\.PIXEL_\w+) '(\[.*?\])'", str(found.value))
    assert [key for key, _ in written] == ["MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"]
    right = [part for pair in written for part in pair]
    cfg = load_config("", opts("test_efficientnet", "INPUT.FORMAT", channels, *right))
    assert numbers(cfg) == tuple(yaml.safe_load(text) for _, text in written)


def test_means_in_the_order_of_the_other_format_are_refused():
    turned = ["MODEL.PIXEL_MEAN", str(IMAGENET[0]), "MODEL.PIXEL_STD", str(IMAGENET[1])]
    with pytest.raises(D2CityscapesError, match=r"for INPUT\.FORMAT BGR"):
        load_config("", opts("test_efficientnet", *turned))


def test_whoever_builds_the_model(timm_cfg):
    """A config that went through nobody's hands: this package's builder settles it by itself."""
    cfg = timm_cfg("test_vit")
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "SemanticSegmentor", 19
    before = cfg.dump()
    model = build_model(cfg)
    assert model.pixel_mean.flatten().tolist() == model.pixel_std.flatten().tolist() == [127.5] * 3
    assert cfg.dump() == before
    cfg.MODEL.PIXEL_MEAN = [100.0, 100.0, 100.0]
    with pytest.raises(D2CityscapesError, match="leave them out, or write"):
        build_model(cfg)


def test_other_backbones_are_not_touched():
    cfg = d2c.get_cfg()
    cfg.MODEL.PIXEL_MEAN = [1.0, 2.0, 3.0]
    assert settle_pixels(cfg) is cfg

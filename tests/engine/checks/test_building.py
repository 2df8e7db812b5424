"""Errors of Detectron2 while it builds: one line; errors of ours keep their traceback."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.matcher import Matcher

from d2_cityscapes.errors import D2CityscapesError, building
from d2_cityscapes.modeling.build import build_model


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.RPN.IN_FEATURES", ["p2", "p9"]], "KeyError: 'p9'"),
        (
            ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res9"]],
            r"resnet, (ResNet\.)?__init__: AssertionError: Available children",
        ),
        (["MODEL.BACKBONE.NAME", "build_no_backbone"], "build_no_backbone"),
        (["MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.5, 0.6]], r"__init__ \(assert len\(labels"),
        (
            ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0], [0.5, 1.0], [1.0], [1.0], [1.0]]],
            "same number of anchors",
        ),
        (["MODEL.ROI_MASK_HEAD.CONV_DIM", -1], "the model cannot be built from this config"),
    ],
)
def test_one_line(configure: Callable, opts: list, message: str) -> None:
    with pytest.raises(D2CityscapesError, match=message) as caught:
        build_model(configure("quick/instance.yaml", *opts))
    assert "\n" not in str(caught.value) and "cannot be built" in str(caught.value)


def test_a_bare_assertion_shows_its_code() -> None:
    with pytest.raises(D2CityscapesError) as caught, building("it"):
        Matcher([0.0], [0, 1])
    assert str(caught.value).replace("Matcher.", "") == (  # which Python 3.10 does not know
        "it cannot be built from this config: detectron2.modeling.matcher, __init__ "
        "(assert thresholds[0] > 0): AssertionError"
    )


def test_defects_of_ours_stay(monkeypatch: pytest.MonkeyPatch, configure: Callable) -> None:
    """A component of this package that fails, called by Detectron2's builder."""
    name = "build_seamless_resnet_fpn_backbone"
    broken = eval("lambda *args: [][1]", {"__name__": "d2_cityscapes.modeling.panoptic.backbone"})
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, name, broken)
    with pytest.raises(IndexError):
        build_model(configure("quick/panoptic.yaml", "MODEL.BACKBONE.NAME", name))


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), building("it"):
        print(1 / 0)
    with pytest.raises(D2CityscapesError, match=r"^as it was$"), building("it"):
        raise D2CityscapesError("as it was")
    with pytest.raises(KeyboardInterrupt), building("it"):
        raise KeyboardInterrupt

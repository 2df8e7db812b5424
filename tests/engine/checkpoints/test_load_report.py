"""What a load report says, in short."""

from __future__ import annotations

from d2_cityscapes.engine.checkpoints.load_report import LoadReport, shortened


def _report(**fields) -> LoadReport:
    empty = {"loaded": (), "skipped": {}, "missing": (), "excluded": (), "unused": ()}
    return LoadReport(**{**empty, **fields})


def test_summary():
    assert _report(loaded=("a.weight",)).summary() == "loaded 1 of 1 tensors"
    report = _report(
        loaded=("a.weight", "a.bias"),
        skipped={"b.weight": ((81, 4), (9, 4)), "b.bias": ((81,), (9,))},
        missing=("c.weight",),
        excluded=("d.weight",),
        unused=("e.weight",),
    )
    assert report.summary() == (
        "loaded 2 of 6 tensors; skipped 2: b.weight (81, 4) vs (9, 4), b.bias (81,) vs (9,)"
    )
    assert report.initialised == ("b.weight", "b.bias", "c.weight", "d.weight")


def test_names_are_grouped_by_the_outermost_module_that_holds_nothing_else():
    report = _report(
        loaded=("backbone.fpn.weight", "heads.box.fc1.weight"),
        missing=("heads.box.fc2.weight", "heads.box.fc2.bias", "heads.mask.a.weight",
                 "heads.mask.b.weight", "rpn.conv.weight", "scale"),
        unused=("backbone.body.weight", "body.weight"),
    )  # fmt: skip
    assert report.modules(report.missing) == (
        "heads.box.fc2 (2 tensors), heads.mask (2 tensors), rpn (1 tensor), scale (1 tensor)"
    )
    assert report.modules(report.unused) == "backbone.body (1 tensor), body (1 tensor)"


def test_long_lists_end():
    assert shortened(["a", "b"]) == "a, b"
    assert shortened([str(n) for n in range(14)]).endswith("8, 9 and 4 more")


def test_a_surplus_lies_inside_of_what_the_model_has():
    report = _report(
        loaded=("backbone.res4.5.conv.weight", "roi_heads.box_head.fc1.weight"),
        missing=("rpn.conv.bias",),
        unused=(
            "backbone.res4.6.conv.weight", "backbone.fpn.weight", "roi_heads.box_head.fc2.weight",
            "rpn.conv.weight", "roi_heads.mask_head.fcn1.weight", "sem_seg_head.p2.weight",
            "pixel_mean", "res4.7.conv.weight", "stem.fc.weight", "fc.weight", "res9.1.conv.weight",
        ),
    )  # fmt: skip
    assert report.surplus == (
        "backbone.res4.6.conv.weight", "backbone.fpn.weight", "roi_heads.box_head.fc2.weight",
        "rpn.conv.weight", "res4.7.conv.weight",
    )  # fmt: skip

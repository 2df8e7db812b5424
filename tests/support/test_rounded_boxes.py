"""The tool that measures what rounded boxes cost."""

from __future__ import annotations

from rounded_boxes import measure

from d2_cityscapes.engine.setup import load_config


def test_exact_boxes_are_nearer_to_float32(datasets, tiny_opts, repository):
    opts = [*tiny_opts, "SOLVER.AMP.ENABLED", "False", "MODEL.DEVICE", "cpu"]
    found = measure(load_config(repository / "configs/quick/instance.yaml", opts), steps=1)
    assert {"loss_cls", "loss_box_reg", "loss_mask", "gradients"} <= found.keys()
    assert found["gradients"]["exact"] < found["gradients"]["rounded"]

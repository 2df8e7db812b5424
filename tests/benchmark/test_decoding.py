"""The benchmark of decoders, end to end on a small tree."""

from __future__ import annotations

import numpy as np

from d2_cityscapes.benchmark import decoding
from d2_cityscapes.benchmark.decoding import DecodingBenchmark, benchmark_decoding


def test_pictures_and_ids_are_read_by_every_decoder(cityscapes_tree, monkeypatch):
    monkeypatch.setattr(
        decoding,
        "_decoders",
        lambda: {
            "Pillow": decoding._pillow,
            "of black": lambda data: np.zeros_like(decoding._pillow(data)),
        },
    )
    reported = []
    settings = DecodingBenchmark(cityscapes=cityscapes_tree, images=2, rounds=1)
    found = benchmark_decoding(settings, report=reported.extend)
    assert reported == found
    measures = ["pictures read, processor time", "instance ids read, processor time"]
    assert [(c.measure, c.peer) for c in found] == [
        (measure, peer) for measure in measures for peer in ("Pillow", "of black")
    ]
    assert [c.theirs for c in found if c.peer == "of black"] == ["gives other pixels"] * 2
    assert all(c.ratio is not None and c.ratio > 0 for c in found if c.peer != "of black")

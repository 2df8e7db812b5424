"""Large pictures in tiles: where they lie, and that the tiles are seen at full resolution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from d2_cityscapes.engine.prediction import Predictor, tiles
from d2_cityscapes.engine.prediction.tiles import TiledPredictor, Tiling
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.test_time.windows import starts


@pytest.fixture
def large(scene: np.ndarray) -> np.ndarray:
    """(128, 256, 3): four scenes, each as large as the networks were made for."""
    return np.tile(scene, (2, 2, 1))


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [100, 1024, 4321])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_cover_a_side_with_their_overlap(rows: int, length: int, overlap: float) -> None:
    tiling = Tiling(rows, 1, overlap)
    size, stride = tiling.size(length, 64)[0], tiling.stride(length, 64)[0]
    begins = starts(length, size, stride)
    assert len(begins) == rows and begins[0] == 0 and begins[-1] + size == length
    shared = [a + size - b for a, b in itertools.pairwise(begins)]
    assert all(s >= overlap * size - rows for s in shared)


def test_one_tile_is_the_whole_picture(panoptic_cfg, scene) -> None:
    whole = Predictor(panoptic_cfg)(scene)
    tiled = TiledPredictor(panoptic_cfg, Tiling(1, 1))(scene)
    assert tiled["panoptic_seg"][0].equal(whole["panoptic_seg"][0])
    assert tiled["instances"].pred_masks.equal(whole["instances"].pred_masks)
    assert tiled["sem_seg"].equal(whole["sem_seg"])


@pytest.mark.parametrize("lean", [False, True])
def test_semantics_of_tiles_without_overlap_are_those_of_each(cfg, large, lean) -> None:
    """At full resolution: the config would make the picture half as large."""
    found = TiledPredictor(cfg, Tiling(2, 2, 0.0), lean=lean)(large)["sem_seg"]
    one = Predictor(cfg, lean=lean)(large[:64, :128].copy())["sem_seg"]
    assert found.shape[-2:] == (128, 256)
    for rows in (np.s_[:64], np.s_[64:]):
        for columns in (np.s_[:128], np.s_[128:]):
            torch.testing.assert_close(found[..., rows, columns], one)


def test_instances_of_tiles_lie_where_they_are_seen(instance_cfg, large) -> None:
    tiled = TiledPredictor(instance_cfg, Tiling(2, 2, 0.0), lean=True)(large)["instances"]
    one = Predictor(instance_cfg)(large[:64, :128].copy())["instances"]
    assert len(tiled) == 4 * len(one) > 0
    assert (tiled.scores.diff() <= 0).all()
    for box, score, mask in zip(one.pred_boxes.tensor, one.scores, one.pred_masks, strict=True):
        same = torch.isclose(tiled.scores, score, atol=1e-5, rtol=0)
        for corner in ((0, 0), (128, 0), (0, 64), (128, 64)):
            there = tiled.pred_boxes.tensor - torch.tensor([*corner, *corner])
            (index, *_) = ((there - box).abs().amax(dim=1) < 0.01).logical_and(same).nonzero()[:, 0]
            own = tiled.pred_masks[int(index)]
            assert own[corner[1] : corner[1] + 64, corner[0] : corner[0] + 128].equal(mask)
            assert own.sum() == mask.sum()


def test_an_object_on_a_seam_is_found_once(instance_cfg, scene, monkeypatch) -> None:
    """Two tiles that show the same, as both see the strip: what one has, the other has too."""
    monkeypatch.setattr(tiles, "_side", lambda length, number, overlap: length)
    monkeypatch.setattr(tiles, "starts", lambda length, size, stride: [0, 0])
    found = TiledPredictor(instance_cfg, Tiling(2, 1))(scene)["instances"]
    one = Predictor(instance_cfg)(scene)["instances"]
    assert len(found) == len(one) > 0
    assert found.pred_masks.sum() == one.pred_masks.sum()


@pytest.mark.parametrize("text", ["3", "0x2", "axb", "2x3x4", "-1x2", ""])
def test_what_is_no_tiling(text: str) -> None:
    with pytest.raises(D2CityscapesError, match=r"use ROWSxCOLUMNS, e\.g\. 2x3"):
        Tiling.parse(text, 0.2)
    with pytest.raises(D2CityscapesError, match=r"--tile-overlap 1: use a part of a tile"):
        Tiling.parse("2x3", 1.0)
    assert Tiling.parse("2X3", 0.1) == Tiling(2, 3, 0.1)


def test_clashes_are_one_line(cfg, instance_cfg, scene) -> None:
    with pytest.raises(D2CityscapesError, match=r"64 x 128 \(H x W\) would be .*; use fewer"):
        TiledPredictor(cfg, Tiling(2, 2))(scene)
    cfg.TEST.SLIDING_WINDOW.ENABLED = True
    instance_cfg.TEST.AUG.ENABLED = True
    for own, key in ((cfg, "TEST.SLIDING_WINDOW"), (instance_cfg, "TEST.AUG")):
        with pytest.raises(ConfigError, match=rf"--tiles: not with {key}\.ENABLED True"):
            TiledPredictor(own, Tiling(2, 2))
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    cfg.MODEL.META_ARCHITECTURE = "UniversalSegmentor"
    with pytest.raises(ConfigError, match="--tiles: not for UniversalSegmentor"):
        TiledPredictor(cfg, Tiling(2, 2))

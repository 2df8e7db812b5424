"""Pictures of one's own: what evaluation sees in them, written as drawing and map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from d2_cityscapes.engine.prediction import PictureError, Predictor, find_pictures, predict_pictures
from d2_cityscapes.engine.setup import ConfigError, load_config
from d2_cityscapes.engine.trainer import Trainer
from d2_cityscapes.labels import CITYSCAPES


@pytest.fixture
def cfg(repository, datasets, tiny_opts, tmp_path):
    """A tiny semantic model with random weights, saved."""
    opts = [*tiny_opts, "DATASETS.TEST", "('cityscapes_shards_val',)", "INPUT.FORMAT", "BGR"]
    found = load_config(repository / "configs" / "quick" / "semantic.yaml", opts)
    weights = tmp_path / "weights.pth"
    torch.save({"model": Trainer.build_model(found).state_dict()}, weights)
    found.defrost()
    found.MODEL.WEIGHTS = str(weights)
    return found


def test_a_picture_is_seen_as_in_an_evaluation(cfg, cityscapes_tree):
    predictor = Predictor(cfg)
    record = next(iter(Trainer.build_test_loader(cfg, "cityscapes_shards_val")))
    with torch.no_grad():
        expected = predictor._model.eval()(record)[0]["sem_seg"]
    path = next(cityscapes_tree.rglob(f"{record[0]['image_id']}_leftImg8bit.png"))
    assert predictor(np.asarray(Image.open(path)))["sem_seg"].equal(expected)


def test_a_folder_becomes_drawings_and_maps(cfg, cityscapes_tree, tmp_path):
    folder = cityscapes_tree / "leftImg8bit" / "val"
    names = [name for name, _ in find_pictures([folder])]
    assert len(names) == 8 and all("/" in name for name in names)  # by city
    assert predict_pictures(cfg, [folder], tmp_path / "out") == 8
    for name in names:
        ids = np.asarray(Image.open(tmp_path / "out" / f"{name}_instanceIds.png"))
        assert ids.shape == (64, 128)
        assert set(np.unique(ids)) <= {c.label_id for c in CITYSCAPES.classes}
        assert Image.open(tmp_path / "out" / f"{name}_drawn.jpg").size == (128, 64)


def test_what_is_no_picture_is_one_line(cfg, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "note.txt").write_text("no picture")
    with pytest.raises(PictureError, match=r"nowhere\.png: missing"):
        predict_pictures(cfg, [tmp_path / "nowhere.png"], tmp_path / "out")
    with pytest.raises(PictureError, match=r"no \.png, \.jpg, \.jpeg file"):
        predict_pictures(cfg, [tmp_path / "a"], tmp_path / "out")
    with pytest.raises(PictureError, match=r"note\.txt: not a readable picture"):
        predict_pictures(cfg, [tmp_path / "note.txt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is empty"):
        Predictor(cfg)


def test_two_pictures_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 2)).save(tmp_path / folder / "x.png")
    with pytest.raises(PictureError, match="both would be written as x"):
        list(find_pictures([tmp_path / "a", tmp_path / "b"]))
    assert [name for name, _ in find_pictures([tmp_path])] == ["a/x", "b/x"]

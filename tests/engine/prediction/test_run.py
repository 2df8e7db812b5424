"""Pictures of one's own: what evaluation sees in them, written as drawing and map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2_cityscapes.engine.prediction import PictureError, Predictor, find_pictures, predict_pictures
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.trainer import Trainer
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES


def picture_size(path):
    """(W, H)."""
    with Image.open(path) as picture:
        return picture.size


def test_a_picture_is_seen_as_in_an_evaluation(cfg, cityscapes_tree):
    predictor = Predictor(cfg)
    record = next(iter(Trainer.build_test_loader(cfg, "cityscapes_shards_val")))
    with torch.no_grad():
        expected = predictor._model.eval()(record)[0]["sem_seg"]
    path = next(cityscapes_tree.rglob(f"{record[0]['image_id']}_leftImg8bit.png"))
    assert predictor(np.asarray(Image.open(path)))["sem_seg"].equal(expected)


def test_a_folder_becomes_drawings_and_maps(cfg, cityscapes_tree, tmp_path):
    folder = cityscapes_tree / "leftImg8bit" / "val"
    names = list(find_pictures([folder]).pictures)
    assert len(names) == 8 and all("/" in name for name in names)  # by city
    assert len(predict_pictures(cfg, [folder], tmp_path / "out").pictures) == 8
    for name in names:
        ids = np.asarray(Image.open(tmp_path / "out" / f"{name}_instanceIds.png"))
        assert ids.shape == (64, 128)
        assert set(np.unique(ids)) <= {c.label_id for c in CITYSCAPES.classes}
        assert picture_size(tmp_path / "out" / f"{name}_drawn.jpg") == (128, 64)


def test_what_is_no_picture_is_one_line(cfg, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "note.txt").write_text("no picture")
    with pytest.raises(PictureError, match=r"nowhere\.png: missing"):
        predict_pictures(cfg, [tmp_path / "nowhere.png"], tmp_path / "out")
    with pytest.raises(PictureError, match=r"no \.png, \.jpg, .*, \.tiff file"):
        predict_pictures(cfg, [tmp_path / "a"], tmp_path / "out")
    with pytest.raises(PictureError, match=r"note\.txt: not a readable picture"):
        predict_pictures(cfg, [tmp_path / "note.txt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is empty"):
        Predictor(cfg)


def test_a_rerun_writes_the_same_and_predicts_no_drawing(cfg, tmp_path):
    """Also where the output lies in the input, or is it."""
    for output in (tmp_path / "in" / "out", tmp_path / "in"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (128, 64), (90, 120, 30)).save(tmp_path / "in" / "a.png")
        (tmp_path / "in" / "._a.png").touch()
        for _ in range(2):
            found = predict_pictures(cfg, [tmp_path / "in"], output)
            assert list(found.pictures) == ["a"]
        assert {p.name for p in output.iterdir() if "_" in p.stem and p.name[0] != "."} == {
            "a_drawn.jpg",
            "a_instanceIds.png",
        }
        assert found.passed_over["drawn by this command"] == 2 if output.name == "out" else 4


def test_damaged_pictures_do_not_stop_the_others(cfg, cityscapes_tree, tmp_path):
    (tmp_path / "in").mkdir()
    good = sorted((cityscapes_tree / "leftImg8bit" / "val").rglob("*.png"))[:2]
    (tmp_path / "in" / "a.png").write_bytes(good[0].read_bytes()[:900])
    (tmp_path / "in" / "b.webp").write_text("no picture")
    (tmp_path / "in" / "c.txt").touch()
    for number, path in enumerate(good):
        (tmp_path / "in" / f"x{number}.png").write_bytes(path.read_bytes())
    with pytest.raises(PictureError) as caught:
        predict_pictures(cfg, [tmp_path / "in"], tmp_path / "out")
    text = str(caught.value)
    assert text.startswith("2 problems: ") and "a.png: " in text and "b.webp: " in text
    assert text.endswith(
        f"2 of 4 pictures are in {tmp_path / 'out'}; passed over: 1 of other kinds"
    )
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_grey_of_16_bits_is_seen_as_of_8(cfg, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (64, 128), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    inputs = [tmp_path / "grey8.png", tmp_path / "grey16.png"]
    predict_pictures(cfg, inputs, tmp_path / "out")
    for end in ("instanceIds.png", "drawn.jpg"):
        of_8, of_16 = (tmp_path / "out" / f"{path.stem}_{end}" for path in inputs)
        assert of_8.read_bytes() == of_16.read_bytes()


def test_a_turned_picture_is_predicted_as_it_is_shown(cfg, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (128, 64), (90, 120, 30)).save(tmp_path / "a.jpg", exif=exif)
    predict_pictures(cfg, [tmp_path / "a.jpg"], tmp_path / "out")
    for end in ("instanceIds.png", "drawn.jpg"):
        assert picture_size(tmp_path / "out" / f"a_{end}") == (64, 128)


def test_outputs_that_cannot_be_written_are_one_line(cfg, tmp_path):
    Image.new("RGB", (128, 64)).save(tmp_path / "a.png")
    Image.new("RGB", (128, 64)).save(tmp_path / "a_drawn.jpg")
    before = (tmp_path / "a_drawn.jpg").read_bytes()
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "out", tmp_path / "file", Path("/proc/out")):
        with pytest.raises(D2CityscapesError, match="cannot be written to"):
            predict_pictures(cfg, [tmp_path / "a.png"], output)
    with pytest.raises(D2CityscapesError, match=r"a_drawn\.jpg: is read here too"):
        predict_pictures(cfg, [tmp_path / "a.png", tmp_path / "a_drawn.jpg"], tmp_path)
    assert (tmp_path / "a_drawn.jpg").read_bytes() == before


def test_a_map_that_is_not_of_the_command_is_never_lost(cfg, tmp_path):
    """Neither one from elsewhere, nor one that was painted over since."""
    source = tmp_path / "a.png"
    Image.new("RGB", (128, 64)).save(source)
    predict_pictures(cfg, [source], tmp_path)
    own = tmp_path / "a_instanceIds.png"
    first = own.read_bytes()
    predict_pictures(cfg, [source], tmp_path)
    assert own.read_bytes() == first
    for content in (source.read_bytes(), b"no picture"):
        own.write_bytes(content)
        with pytest.raises(PictureError, match=r"a_instanceIds\.png is not of this command; move"):
            predict_pictures(cfg, [source], tmp_path)
        assert own.read_bytes() == content


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1)])
def test_pictures_of_odd_shapes(cfg, tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    predict_pictures(cfg, [tmp_path / "a.png"], tmp_path / "out")
    assert picture_size(tmp_path / "out" / "a_instanceIds.png") == size


@pytest.mark.parametrize("size", [(1, 101), (3000, 1)])
def test_lines_are_no_pictures(cfg, tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(PictureError, match="no network sees anything"):
        predict_pictures(cfg, [tmp_path / "a.png"], tmp_path / "out")

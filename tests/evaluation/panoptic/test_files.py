"""Truth and predictions on disk: every form is recognised, and mistakes are one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.evaluation.panoptic.files import find_panoptic_files
from d2_cityscapes.evaluation.panoptic.map_files import IdsPng, PanopticFileError
from d2_cityscapes.png import PngError
from d2_cityscapes.sources.errors import SourceError

IDS = np.array([[7, 7, 26], [26001, 0, 33999]], dtype=np.uint16)
A, B = "aachen_000000_000019", "aachen_000001_000019"


def write(path: Path, ids: np.ndarray = IDS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)
    return path


def write_json(path: Path, images: list[str], **more: object) -> Path:
    """COCO panoptic of one road each, without the PNGs."""
    segments = [{"id": 5, "category_id": 7}]
    annotations = [
        {"image_id": name, "file_name": f"{name}.png", "segments_info": segments} for name in images
    ]
    path.with_suffix("").mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"annotations": annotations, **more}))
    return path


def found(path: Path, **options: object) -> list[str]:
    return list(find_panoptic_files(path, **{"truth": True, **options}).maps)


# forms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", ["{}_instanceIds.png", "{}_leftImg8bit.png", "{}.png", "aachen/{}_leftImg8bit.png"]
)
def test_pngs_flat_or_in_city_folders(tmp_path: Path, layout: str) -> None:
    for name in (B, A):
        write(tmp_path / layout.format(name))
    files = find_panoptic_files(tmp_path, truth=False)
    assert list(files.maps) == [A, B]
    assert files.categories is None
    np.testing.assert_array_equal(files.maps[A].read(), IDS)


def test_what_file_systems_leave_behind(tmp_path: Path) -> None:
    """Upper-case endings are read; macOS's "._" files, which are no pictures, passed over."""
    write(tmp_path / f"{A}_INSTANCEIDS.PNG")
    write(tmp_path / f"{B}_instanceIds.png")
    (tmp_path / f"._{A}_instanceIds.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".trash").mkdir()
    write(tmp_path / ".trash" / f"{A}_instanceIds.png")
    assert len(found(tmp_path)) == 2


def test_official_tree_and_its_splits(cityscapes_tree: Path) -> None:
    """Colour images and label ids lie beside the instance ids there."""
    with pytest.raises(PanopticFileError, match=r"has splits train, val; choose with --split"):
        found(cityscapes_tree)
    val = found(cityscapes_tree, split="val")
    assert len(val) == 8
    assert val == sorted(val)
    assert found(cityscapes_tree / "gtFine" / "val") == val
    assert len(found(cityscapes_tree, truth=False)) == 16, "predictions may be of several splits"
    with pytest.raises(PanopticFileError, match="no split test; it has train, val"):
        found(cityscapes_tree, split="test")
    with pytest.raises(PanopticFileError, match="no split val; it has no folders of splits"):
        found(cityscapes_tree / "gtFine" / "val", split="val")


def test_shards_are_the_tree(cityscapes_tree: Path, datasets_root: Path) -> None:
    shards = datasets_root / "cityscapes_shards"
    with pytest.raises(PanopticFileError, match=r"has splits train, val; choose"):
        found(shards)
    packed = find_panoptic_files(shards, truth=True, split="val").maps
    pngs = find_panoptic_files(cityscapes_tree, truth=True, split="val").maps
    assert list(packed) == list(pngs)
    for name in pngs:
        np.testing.assert_array_equal(packed[name].read(), pngs[name].read())


def test_coco_panoptic_by_folder_or_json(tmp_path: Path) -> None:
    """The folder itself, its JSON, or what holds both."""
    json_path = write_json(tmp_path / "run" / "v1.2_val.json", [B, A])
    for given in (json_path, json_path.with_suffix(""), tmp_path / "run"):
        files = find_panoptic_files(given, truth=False)
        assert (files.path, list(files.maps)) == (json_path, [A, B])


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    json_path = write_json(tmp_path / "val.json", [A])
    monkeypatch.chdir(json_path.with_suffix(""))
    assert found(Path(".")) == found(Path("../val.json")) == [A]


def test_other_jsons_beside_and_within_do_not_matter(tmp_path: Path) -> None:
    """Such as the results of a first run."""
    write(tmp_path / "run" / "maps" / f"{A}.png")
    for place in (tmp_path / "run.json", tmp_path / "run" / "maps.json"):
        place.write_text('{"results": []}')
    assert found(tmp_path / "run") == [A]


def test_folders_may_be_links(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / f"{A}.png")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "aachen").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "run") == [A]


# mistakes -----------------------------------------------------------------------------------------


def error(path: Path, **options: object) -> str:
    with pytest.raises((PanopticFileError, SourceError)) as caught:
        found(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_there_says_what_was_looked_for(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        assert str(path) in error(path)
        for word in ("*_instanceIds.png", "NAME.json", "index.json"):
            assert word in error(path)
    (tmp_path / "predictions.zip").write_bytes(b"")
    assert "give its folder" in error(tmp_path / "predictions.zip")


def test_two_forms_in_one_place(tmp_path: Path) -> None:
    write(tmp_path / "gtFine" / "val" / f"{A}_gtFine_instanceIds.png")
    write_json(tmp_path / "gtFine" / "cityscapes_panoptic_val.json", [A])
    message = error(tmp_path / "gtFine")
    assert "cityscapes_panoptic_val.json" in message
    assert "1 *_instanceIds.png" in message
    assert found(tmp_path / "gtFine" / "val") == [A]


def test_two_jsons_in_one_place(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_json(tmp_path / f"cityscapes_panoptic_{split}.json", [A])
    assert "train.json" in error(tmp_path)
    assert "val.json" in error(tmp_path)


def test_two_maps_of_one_image(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{A}{end}.png") for end in ("", "_leftImg8bit"))
    message = error(tmp_path, truth=False)
    assert str(first) in message
    assert str(second) in message


def test_a_json_of_no_image(tmp_path: Path) -> None:
    assert "lists no image" in error(write_json(tmp_path / "val.json", []))


def test_json_without_its_folder(tmp_path: Path) -> None:
    json_path = write_json(tmp_path / "val.json", [A])
    json_path.with_suffix("").rmdir()
    assert "no folder val/" in error(json_path)


# reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_integer_png(tmp_path: Path, dtype: type) -> None:
    ids = np.array([[7, 26], [0, 11]], dtype=dtype)
    np.testing.assert_array_equal(IdsPng(write(tmp_path / "a.png", ids)).read(), ids)


def test_unreadable_pngs_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.png", np.tile(IDS, (50, 50)))
    truncated, text = tmp_path / "truncated.png", tmp_path / "text.png"
    truncated.write_bytes(whole.read_bytes()[:-60])
    text.write_text("a picture")
    color = write(tmp_path / "color.png", np.zeros((2, 3, 3), np.uint8))
    for path, message in (
        (truncated, "cannot be decoded"),
        (text, "not a readable PNG"),
        (tmp_path / "gone.png", "missing"),
        (color, "RGB with 8 bits, expected one channel"),
    ):
        with pytest.raises(PngError, match=message) as caught:
            IdsPng(path).read()
        assert str(path) in str(caught.value)

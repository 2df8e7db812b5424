"""The PNG tree as Detectron2 0.6 lists it, without its loader, which does not run on main."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from d2_cityscapes.benchmark import stock_tree
from d2_cityscapes.benchmark.stock_tree import STOCK, best_stock, mask_format, read_tree
from d2_cityscapes.errors import D2CityscapesError


@pytest.mark.parametrize("name", STOCK)
def test_it_lists_what_detectron2_lists(name, cityscapes_tree):
    pytest.importorskip("cv2")
    pytest.importorskip("shapely")
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances

    folders = (cityscapes_tree / part / "val" for part in ("leftImg8bit", "gtFine"))
    try:
        expected = load_cityscapes_instances(*map(str, folders), **STOCK[name])
    except ModuleNotFoundError:
        pytest.skip("the loader of Detectron2's main branch")
    found = read_tree(cityscapes_tree, "val", name)
    expected.sort(key=lambda image: image["file_name"])
    assert [len(image["annotations"]) for image in found] == [
        len(image["annotations"]) for image in expected
    ]
    assert sum(len(image["annotations"]) for image in found) > 20
    np.testing.assert_equal(found, expected)


def test_its_formats():
    assert {name: mask_format(name) for name in STOCK} == {
        "png-polygons": "polygon",
        "png-rle": "bitmask",
        "json-polygons": "polygon",
    }


def test_a_package_that_is_missing(cityscapes_tree, monkeypatch):
    monkeypatch.setattr(stock_tree.importlib.util, "find_spec", lambda name: None)
    assert best_stock() == "png-rle"
    with pytest.raises(D2CityscapesError, match="pip install shapely, or --stock png-rle"):
        read_tree(cityscapes_tree, "val", "json-polygons")


def test_it_needs_no_cityscapes_module_of_detectron2(cityscapes_tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2.data.datasets.cityscapes", None)
    assert len(read_tree(cityscapes_tree, "val", "png-rle", workers=1)) == 8

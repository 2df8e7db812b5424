"""What is public has its place in a page, found without importing it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from docs_site.api_pages import PACKAGES, api_page, public_names


@pytest.mark.parametrize("file", PACKAGES)
def test_names_are_those_of_the_package(repository: Path, file: str) -> None:
    package = importlib.import_module(str(Path(file).parent).replace("/", "."))
    found = public_names(repository / file)
    assert list(found) == package.__all__
    for name, module in found.items():
        assert getattr(importlib.import_module(module), name) is getattr(package, name)


def test_a_page_names_what_mkdocstrings_reads(repository: Path) -> None:
    page = api_page(repository / "d2_cityscapes/data/__init__.py")
    assert page.startswith("# d2_cityscapes.data\n\nShards, ")
    assert "\n::: d2_cityscapes.shards.reader.ShardReader\n" in page
    assert "    register_cityscapes_shards,\n" in page

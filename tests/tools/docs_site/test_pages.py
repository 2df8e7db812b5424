"""Every page has its place in the menu, and links lead somewhere on the site too."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_site.pages import GENERATED, PAGES, PageError, page_of, write_pages

FILES = ("index.md", "two.md", "extra.css", "images/a.png")


class Menu(yaml.SafeLoader):
    """Reads mkdocs.yml with its tags, which name Python functions and variables, as None."""


Menu.add_multi_constructor("", lambda *_: None)


def pages_in(menu: Any) -> Iterator[str]:
    if isinstance(menu, str):
        yield menu
    else:
        for entry in menu.values() if isinstance(menu, dict) else menu:
            yield from pages_in(entry)


def test_every_page_is_in_the_menu_once(repository: Path, tmp_path: Path) -> None:
    write_pages(repository, tmp_path)
    written = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.md")]
    menu = yaml.load((repository / "mkdocs.yml").read_text(), Menu)["nav"]
    assert sorted(pages_in(menu)) == sorted(written)


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a checkout of empty pages, but for docs/one.md; its pages are in the folder "pages"."""

    def make(text: str) -> Path:
        root = tmp_path / "checkout"
        for file in (*PAGES, *(f"docs/{name}" for name in FILES), "tools/x.py"):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text("")
        for file in GENERATED:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / file, root / file)
        (root / "docs" / "one.md").write_text(text)
        write_pages(root, tmp_path / "pages")
        return tmp_path / "pages"

    return make


@pytest.mark.parametrize(
    ("link", "on_the_site"),
    [
        ("two.md#part", "two.md#part"),
        ("../configs/README.md", "configs.md"),
        ("../CHANGELOG.md#top", "changelog.md#top"),
        ("../README.md", "index.md"),
        ("../d2_cityscapes/config.py", "config_reference.md"),
        ("../d2_cityscapes/data/__init__.py", "api/data.md"),
        ("images/a.png", "images/a.png"),
        ("../tools/x.py", "files/tools/x.py"),
        ("#here", "#here"),
        ("https://example.org/a", "https://example.org/a"),
    ],
)
def test_links(checkout: Callable, link: str, on_the_site: str) -> None:
    pages = checkout(f"[a]({link})\n\n```\n[a]({link})\n```\n")
    assert (pages / "one.md").read_text() == f"[a]({on_the_site})\n\n```\n[a]({link})\n```\n"
    file = on_the_site.partition("#")[0]
    assert "://" in file or (pages / file).exists()


@pytest.mark.parametrize("link", ["three.md", "../tools", "../../elsewhere.md"])
def test_a_link_that_leads_nowhere_is_refused(checkout: Callable, link: str) -> None:
    with pytest.raises(PageError, match=f"docs/one.md: the link to {link} leads to no file"):
        checkout(f"[a]({link})")


def test_pages_of_files() -> None:
    assert page_of("docs/a/b.md") == "a/b.md"
    assert page_of("tools/train_net.py") is None

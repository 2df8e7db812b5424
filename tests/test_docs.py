"""What README, CONTRIBUTING and the pages of docs/ name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "d2_cityscapes"
ARCHITECTURE = "docs/architecture.md"
PAGES = ("README.md", "CONTRIBUTING.md", ARCHITECTURE)
DOCS = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
EVERY_PAGE = sorted({*PAGES, *DOCS, "configs/README.md", "datasets/README.md"})
# In pages that name files in other words too: of other projects, of the reader, or in short.
OTHER_WORDS = ("docs/benchmarks.md", "docs/comparison.md", "docs/own_data.md")
OTHERS = {"datasets/cityscapes_shards", "configs/deeplabv3", "configs/cityscapes"}
ROOMS = sorted(str(p.parent.relative_to(PACKAGE)) for p in PACKAGE.glob("*/**/__init__.py"))
# of a file that is named in short
PLACES = (
    ROOT,
    PACKAGE,
    *(ROOT / name for name in ("tools", "datasets", "tests/evaluation", "d2_cityscapes/export")),
)
FOLDERS = ("d2_cityscapes", "tests", "tools", "configs", "datasets", "docs", ".ci")


def found(name: str) -> list[Path]:
    return [place / name for place in PLACES if (place / name).exists()]


def named(page: str) -> set[str]:
    """The paths in a page: all below our folders, and all Python files; NAME, DIR: any."""
    folders = FOLDERS + tuple(ROOMS if page == ARCHITECTURE else ())
    words = {word.rstrip(".") for word in re.findall(r"[\w./-]+", (ROOT / page).read_text())}
    ours = {w for w in words if w.endswith(".py") or ("/" in w and w.split("/")[0] in folders)}
    return {word for word in ours if "NAME" not in word and "DIR" not in word}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    assert len(named(page)) > 5
    assert not [name for name in named(page) if not found(name)]


@pytest.mark.parametrize("page", sorted({*DOCS} - {*OTHER_WORDS}))
def test_every_path_of_docs_exists(page: str) -> None:
    assert not [name for name in named(page) - OTHERS if not found(name)]


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_every_link_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text())
    ours = [link for link in links if "://" not in link]
    assert not [link for link in ours if not (ROOT / page).parent.joinpath(link).exists()]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_its_line(room: str) -> None:
    outer, *inner = room.split("/")
    lines = (ROOT / ARCHITECTURE).read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"| `{outer}/` |")]
    assert all(f"`{name}/`" in line for name in inner)


def test_tables_are_where_the_page_says() -> None:
    """Such as `EVALUATORS` in `evaluation/evaluators.py`."""
    text = (ROOT / ARCHITECTURE).read_text()
    pairs = re.findall(r"`(\w+)`(?: and `\w+`)? (?:in|of)\s+`([\w./]+\.py)`", text)
    assert len(pairs) > 8
    assert not [(name, file) for name, file in pairs if name not in found(file)[0].read_text()]

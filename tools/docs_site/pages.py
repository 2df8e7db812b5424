"""All pages of the site in one folder, with links that hold there.

In the repository a link leads from file to file. On the site it leads to the page that is made of
the file, or, where none is, to a copy of the file.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from docs_site.api_pages import PACKAGES, api_page
from docs_site.config_reference import config_reference

__all__ = ["GENERATED", "PAGES", "PageError", "page_of", "write_pages"]

# File of the repository that is a page, beside those in docs/ -> its page.
PAGES = {
    "README.md": "index.md",  # which has a page of its own, docs/index.md
    "configs/README.md": "configs.md",
    "datasets/README.md": "datasets.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
# File of the repository that a page is generated from -> its page, and the text of it.
GENERATED: dict[str, tuple[str, Callable[[Path], str]]] = {
    "d2_cityscapes/config.py": ("config_reference.md", config_reference),
    **{file: (page, api_page) for file, page in PACKAGES.items()},
}
_STYLE = "extra.css"  # extra_css of mkdocs.yml
_COPIES = "files"  # folder of what pages link to and is no page
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^ *(```|~~~)")


class PageError(Exception):
    """A page that cannot be made."""


def page_of(file: str) -> str | None:
    """The page that is made of a file of the repository; None where there is none."""
    if file in GENERATED:
        return GENERATED[file][0]
    if file.startswith("docs/") and file.endswith(".md"):
        return file.removeprefix("docs/")
    return PAGES.get(file)


def write_pages(root: Path, output: Path) -> None:
    """Write every page of a checkout, and what they show and link to.

    Args:
        root: the checkout.
        output: the folder to write; what it held before is removed.

    Raises:
        PageError: a link that leads nowhere.
    """
    shutil.rmtree(output, ignore_errors=True)
    sources = [str(path.relative_to(root).as_posix()) for path in (root / "docs").glob("**/*.md")]
    sources += [file for file in PAGES if file != "README.md"]
    for file in sorted(sources):
        _write(output / str(page_of(file)), _with_links_of_the_site(file, root, output))
    shutil.copyfile(root / "docs" / _STYLE, output / _STYLE)
    for file, (page, text_of) in GENERATED.items():
        _write(output / page, text_of(root / file))


def _with_links_of_the_site(file: str, root: Path, output: Path) -> str:
    lines, in_block = [], False
    for line in (root / file).read_text(encoding="utf-8").splitlines():
        if _FENCE.match(line):
            in_block = not in_block
        elif not in_block:
            line = _LINK.sub(lambda found: _moved(found, file, root, output), line)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _moved(found: re.Match[str], file: str, root: Path, output: Path) -> str:
    before, link, after = found.groups()
    path, _, anchor = link.partition("#")
    if "://" in link or link.startswith("mailto:") or not path:
        return found[0]
    target = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
    if target.startswith("..") or not (root / target).is_file():
        raise PageError(f"{file}: the link to {link} leads to no file")
    place = page_of(target)
    if place is None:
        place = (
            target.removeprefix("docs/") if target.startswith("docs/") else f"{_COPIES}/{target}"
        )
        (output / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / target, output / place)
    here = posixpath.dirname(str(page_of(file))) or "."
    return f"{before}{posixpath.relpath(place, here)}{'#' * bool(anchor)}{anchor}{after}"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")

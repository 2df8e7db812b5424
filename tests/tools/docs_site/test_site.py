"""The site builds, strictly, and fetches nothing."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None,
    reason="MkDocs is not installed: pip install -r docs/requirements.txt",
)


def build(checkout: Path, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, checkout / "tools/docs_site.py", "--pages", folder / "pages"]
    return subprocess.run(
        [*map(str, command), "--output", str(folder / "site")], capture_output=True, text=True
    )


def test_it_builds_without_a_warning(repository: Path, tmp_path: Path) -> None:
    done = build(repository, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = [path.read_text() for path in (tmp_path / "site").rglob("*.html")]
    assert len(pages) > 25
    assert not [
        s for page in pages for s in re.findall(r'<(?:script|img)[^>]* src="http[^"]*"', page)
    ]
    assert 'id="d2_cityscapes.evaluation.panoptic.quality.PanopticQuality"' in "".join(pages)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("[a](metrics.md#no-such-part)", "no-such-part"),
        ("[a](unknown)", "leads to no file"),
    ],
)
def test_a_broken_link_ends_it(repository: Path, tmp_path: Path, line: str, word: str) -> None:
    for name in ("configs", "datasets", "docs", "d2_cityscapes", "notebooks", "tools"):
        shutil.copytree(repository / name, tmp_path / "checkout" / name)
    for file in repository.glob("*.*"):
        if file.is_file():
            shutil.copy(file, tmp_path / "checkout")
    with open(tmp_path / "checkout" / "docs" / "tour.md", "a") as page:
        page.write(f"\n{line}\n")
    done = build(tmp_path / "checkout", tmp_path)
    assert done.returncode == 1
    assert word in done.stdout + done.stderr

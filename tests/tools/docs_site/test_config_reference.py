"""The page of config keys has every key, with the default that it has."""

from __future__ import annotations

import ast
from pathlib import Path

from detectron2.config import get_cfg as detectron2_cfg
from docs_site.config_reference import Entry, config_reference, read_entries

from d2_cityscapes.config import get_cfg, leaves, plain

CODE = '''
def other(cfg):
    # Not this.
    cfg.A.B = 1


def add_d2_cityscapes_config(cfg):
    """Adds."""
    # One key, with w * x [a
    # list], and "a_name*".
    cfg.SOLVER.ONE = 0.5

    # A section and
    # two keys of it.
    cfg.SOLVER.NODE = CN()
    cfg.SOLVER.NODE.TWO = []
    cfg.SOLVER.NODE.THREE = cfg.SOLVER.get("THREE", "x")
    # Of TEST.OTHER, a key of somebody else.


# Not this.
'''


def entries(repository: Path) -> list[Entry]:
    return read_entries((repository / "d2_cityscapes" / "config.py").read_text())


def test_every_key_is_there_with_its_default(repository: Path) -> None:
    found = {k: v for entry in entries(repository) for k, v in entry.defaults.items()}
    ours, stock = dict(leaves(get_cfg())), dict(leaves(detectron2_cfg()))
    assert ours.keys() - stock.keys() <= found.keys() <= ours.keys()
    for key, default in found.items():
        assert plain(ast.literal_eval(default)) == plain(ours[key]), key


def test_every_key_is_explained_and_can_be_linked_to(repository: Path) -> None:
    page = config_reference(repository / "d2_cityscapes" / "config.py")
    for entry in entries(repository):
        assert len(entry.text) > 20
        assert all(f"### {key} {{ #{key} " in page for key in entry.defaults)


def test_comments_and_the_keys_below_them() -> None:
    assert read_entries(CODE) == [
        Entry('One key, with w * x [a list], and "a_name*".', {"SOLVER.ONE": "0.5"}),
        Entry(
            "A section and two keys of it.",
            {"SOLVER.NODE.TWO": "[]", "SOLVER.NODE.THREE": '"x"'},
        ),
        Entry("Of TEST.OTHER, a key of somebody else.", {}),
    ]


def test_markdown_changes_no_comment(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(CODE)
    page = config_reference(tmp_path / "config.py")
    assert 'One key, with w \\* x `[a list]`, and `"a_name*"`.' in page
    assert "Of `TEST.OTHER`, a key" in page

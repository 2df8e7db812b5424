"""What lines for the user have in common."""

import pytest

from d2_cityscapes.errors import first_few, nearest


@pytest.mark.parametrize(
    ("values", "text"), [([], ""), ([7], "7"), ([1, 2], "1, 2"), ("abc", "a, b, ...")]
)
def test_first_few(values: list, text: str) -> None:
    assert first_few(values, 2) == text


def test_nearest_names() -> None:
    known = iter(["backbone", "backbones", "neck"])
    assert nearest("backbon", known) == "; nearest: backbone, backbones"
    assert nearest("xyz", ["backbone"]) == ""
    assert nearest("bone", ["backbone"], cutoff=0.7) == ""

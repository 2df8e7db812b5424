"""The files of one image have one name in common."""

import pytest

from d2_cityscapes.sources.names import image_name

A = "aachen_000000_000019"


@pytest.mark.parametrize(
    "name",
    [
        f"{A}_gtFine_instanceIds.png",
        f"{A}_gtCoarse_instanceIds.png",
        f"{A}_gtFine_panoptic.png",
        f"{A}_leftImg8bit.png",
        f"{A}_instanceIds.png",
        f"{A}.png",
        f"{A}.jpeg",
        f"{A}_leftImg8bit.PNG",
        f"{A}.Jpg",
        A,
    ],
)
def test_names_of_one_image(name: str) -> None:
    assert image_name(name) == A

"""File names of Cityscapes, and of what is laid out like it."""

from __future__ import annotations

import re

__all__ = [
    "ANNOTATIONS",
    "IDS_SUFFIX",
    "IMAGE_FOLDER",
    "PICTURES",
    "SPLITS",
    "TEST_SPLIT",
    "image_name",
]

IMAGE_FOLDER = "leftImg8bit"  # and how the names of images in it end, before .png
# Split -> the folder of its annotations, which their names contain too.
ANNOTATIONS = {"train": "gtFine", "val": "gtFine", "train_extra": "gtCoarse"}
SPLITS = tuple(ANNOTATIONS)
TEST_SPLIT = "test"  # the images of the test server, whose labels are not public
IDS_SUFFIX = "_instanceIds.png"
PICTURES = (".png", ".jpg", ".jpeg")  # in upper case too

_ENDINGS = re.compile(r"\.(png|jpe?g)$", re.IGNORECASE)
_SUFFIXES = re.compile(
    "(_(leftImg8bit|gtFine|gtCoarse|(instance|panoptic)(Ids|level3Ids)|panoptic))+$"
)


def image_name(name: str) -> str:
    """What the files of one image share: "frankfurt_000000_000294" for any of its file names."""
    return _SUFFIXES.sub("", _ENDINGS.sub("", name))

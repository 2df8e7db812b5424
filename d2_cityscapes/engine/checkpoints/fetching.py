"""Weights by address: fetched once, and checked against the checksum in their name."""

from __future__ import annotations

import contextlib
import os
import re

from detectron2.utils.file_io import PathManager

from d2_cityscapes.engine.checkpoints.address import file_of
from d2_cityscapes.engine.checkpoints.errors import CheckpointError
from d2_cityscapes.files import file_sha256

__all__ = ["fetch_weights", "is_address"]

# PyTorch's and torchvision's files are called e.g. deeplabv3_resnet50_coco-cd0a2569.pth, by the
# first digits of their SHA-256.
_CHECKSUM = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


def is_address(weights: str) -> bool:
    """Whether MODEL.WEIGHTS names something to be fetched, and no file by its path."""
    return "://" in weights


def fetch_weights(address: str) -> str:
    """The local file behind an address, fetched by Detectron2's path manager if need be.

    Args:
        address: http(s)://, file://, safetensors:// or one of Detectron2's schemes; a path stays as
            it is.

    Raises:
        CheckpointError: no network, no such file there, or another content than its name says; what
            was fetched is then thrown away.
    """
    if not is_address(address):
        return address
    try:
        path = file_of(address.removeprefix("file://"))
        local = path if path != address else PathManager.get_local_path(address)
        if not os.path.isfile(local):
            raise FileNotFoundError("no such file")
    except Exception as error:  # of the network, or of a scheme
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{address}: cannot be fetched ({reason}); without a network, download it elsewhere "
            "and give the file by MODEL.WEIGHTS"
        ) from error
    expected = _CHECKSUM.search(address)
    if expected and not file_sha256(local).startswith(expected[1]):
        if local != path:  # of the cache: the next try fetches it again
            with contextlib.suppress(OSError):
                os.unlink(local)
        raise CheckpointError(
            f"{address}: damaged on its way, as the SHA-256 of what came does not begin with "
            f"{expected[1]}: try again, or download it elsewhere and give the file by MODEL.WEIGHTS"
        )
    return local

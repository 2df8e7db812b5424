"""Resizing images of shards, and which pixel of an id map is the nearest."""

from __future__ import annotations

import threading

import numpy as np
import torch
from PIL import Image

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["RESIZE_BACKENDS", "check_resize_backend", "resize_ids", "resize_image"]

RESIZE_BACKENDS = ("torch", "pil", "plain")
_of_thread = threading.local()


def check_resize_backend(name: str) -> str:
    """The name itself, if it is one of `RESIZE_BACKENDS`."""
    if name not in RESIZE_BACKENDS:
        raise D2CityscapesError(
            f"INPUT.RESIZE_BACKEND {name!r}: use {' or '.join(RESIZE_BACKENDS)}"
        )
    return name


def resize_image(
    pixels: torch.Tensor, size: tuple[int, int], *, backend: str = "torch", planar: bool = False
) -> torch.Tensor:
    """Bilinear resize of a (3, H, W) uint8 image to (3, h, w).

    The result may be interleaved in memory (torch's channels_last).

    Args:
        pixels: the image.
        size: (h, w).
        backend: "pil" is Pillow, with antialiasing, as in Detectron2; "torch" is the same filter,
            some four times faster, and differs by up to 2 grey levels in about one value of a
            hundred. "plain" is bilinear between four pixels, without antialiasing, as in
            torchvision's detectors and OpenCV, rounded to whole grey levels.
        planar: lay the result out plane by plane; the values are the same.
    """
    if tuple(pixels.shape[1:]) == tuple(size):
        return pixels
    if check_resize_backend(backend) == "plain":
        resized = torch.nn.functional.interpolate(
            pixels[None].float(), size=size, mode="bilinear", align_corners=False
        )
        return resized[0].round_().to(torch.uint8)
    if backend == "torch":
        if not planar:
            # what torch would make of it otherwise, but in the same memory each time
            room = _room(pixels.shape[1], pixels.shape[2])
            for channel, plane in enumerate(pixels.numpy()):  # sooner than torch.stack
                room[..., channel] = plane
            pixels = torch.from_numpy(room).permute(2, 0, 1)
        return torch.nn.functional.interpolate(
            pixels[None], size=size, mode="bilinear", antialias=True
        )[0]
    picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    array = np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def resize_ids(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An (H, W) map to (h, w): of each new pixel the one under its centre."""
    rows, columns = (_nearest(*pair) for pair in zip(ids.shape, size, strict=True))
    return ids.take(rows, axis=0).take(columns, axis=1)


def _room(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 to be written over: the same memory for each call in a thread."""
    size = 3 * height * width
    room = getattr(_of_thread, "room", None)
    if room is None or len(room) < size:
        room = _of_thread.room = np.empty(size, dtype=np.uint8)
    return room[:size].reshape(height, width, 3)


def _nearest(length: int, new_length: int) -> np.ndarray:
    """(new_length,) source pixel under the centre of each new pixel, as in Pillow's resize.

    Detectron2's own way for wide integers, torch's "nearest", is off by up to half a pixel.
    """
    return (2 * np.arange(new_length) + 1) * length // (2 * new_length)

"""Weights of DINOv2 to begin a training of EoMT with, as its authors do.

Shape letters: D channels of a token; P pixels of a patch's side, before and after.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["eomt_from_dinov2"]

_PATCHES = "embeddings.patch_embeddings.projection.weight"
_PLACES, _CLASS = "embeddings.position_embeddings", "embeddings.cls_token"


def eomt_from_dinov2(
    weights: Mapping[str, Tensor], *, patch_size: int, grid: tuple[int, int]
) -> dict[str, Tensor]:
    """DINOv2's tensors under the names of transformers' EoMT.

    As in timm, by which the authors load them: positions are interpolated, bicubic with
    antialiasing; the one of the class token is added to that token; and patches of another size are
    resampled so that they give the same for a resized picture, as far as that can be.

    Args:
        weights: of `Dinov2Model` or `Dinov2WithRegistersModel`.
        patch_size: pixels of a patch's side in the EoMT.
        grid: its rows and columns of patches.
    """
    found = {}
    for name, tensor in weights.items():
        if name == "embeddings.mask_token":
            continue
        name = name.replace("encoder.layer.", "layers.")
        found[name.replace("attention.o_proj.", "attention.out_proj.")] = tensor
    places = found.pop(_PLACES)[0]
    found[_CLASS] = found[_CLASS] + places[0]
    found[f"{_PLACES}.weight"] = _resized_places(places[1:], grid)
    found[_PATCHES] = _resampled_patches(found[_PATCHES], patch_size)
    return found


def _resized_places(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """(rows * columns, D) of the embeddings (., D) of a square."""
    side = round(len(places) ** 0.5)
    if grid == (side, side):
        return places
    maps = places.T.unflatten(1, (side, side))[None]
    maps = F.interpolate(maps, size=grid, mode="bicubic", antialias=True)
    return maps[0].flatten(1).T


def _resampled_patches(kernel: Tensor, size: int) -> Tensor:
    """(D, 3, size, size) of a kernel (D, 3, P, P), by the pseudo-inverse of the resize.

    Beyer et al., "FlexiViT", CVPR 2023, section 3.4.
    """
    side = kernel.shape[-1]
    if side == size:
        return kernel
    basis = torch.eye(side * side).unflatten(1, (1, side, side))
    resized = F.interpolate(basis, size=(size, size), mode="bicubic", antialias=True)
    inverse = torch.linalg.pinv(resized.flatten(1).double())  # (size * size, P * P)
    return (kernel.flatten(2).double() @ inverse.T).float().unflatten(2, (size, size))

"""EoMT's network, run layer by layer: a plain ViT whose last blocks see the queries as tokens too.

Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025. The layers are those
of transformers, in whose own forward pass images are square, the losses of the layers are one sum,
and the masks of attention are float32 for each head: at 1024 x 1024 pixels 1.2 GB an image and
block, and 18 MB as bool for all heads here.

Shape letters: N images of h, w pixels; Q queries; g, f rows and columns of patches; L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2_cityscapes.modeling.universal.losses import Prediction

__all__ = ["annealed_parts", "eomt_layers", "eomt_stages"]

_POWER = 0.9


def annealed_parts(progress: float, start: float, end: float, num_blocks: int) -> list[float]:
    """The part of the queries that mask their attention in each of the last blocks.

    Blocks take equal turns between start and end, in order; each falls from 1 to 0 by
    (1 - its own progress) ** 0.9 (section 3.3 and the published code).

    Args:
        progress: part of the training that is over, from 0 to 1.
        start, end: as parts of the training.
        num_blocks: how many blocks see the queries.
    """
    turn = (end - start) / num_blocks
    done = ((progress - start - i * turn) / turn for i in range(num_blocks))
    return [(1 - min(max(own, 0.0), 1.0)) ** _POWER for own in done]


def eomt_stages(network: Any) -> list[nn.Module]:
    """Its layers."""
    return list(network.layers)


def eomt_layers(network: Any, images: Tensor, masked_parts: Sequence[float]) -> list[Prediction]:
    """The predictions before each of the last blocks, as far as they are wanted, and behind all.

    In training each block predicts, to be trained. Else a block predicts only where its queries
    mask their attention, which is so where most of them did in training: without chance.

    Args:
        network: `EomtForUniversalSegmentation`.
        images: (N, 3, h, w), normalised, of whole patches. Where these are not of the size that it
            was built for, the embeddings of positions are interpolated, bicubic.
        masked_parts: part of the queries that mask their attention, for each block.
    """
    patch = network.config.patch_size
    grid = (images.shape[2] // patch, images.shape[3] // patch)
    tokens = _embedded(network.embeddings, images, grid)
    first = len(network.layers) - network.config.num_blocks
    found = []
    for number, layer in enumerate(network.layers):
        if number == first:
            queries = network.query.weight.expand(len(images), -1, -1)
            tokens = torch.cat([queries.to(tokens.dtype), tokens], dim=1)
        mask = None
        if number >= first:
            part = masked_parts[number - first]
            if not network.training:
                part = float(part > 0.5)
            if network.training or part > 0:
                found.append(_predicted(network, tokens, grid))
            if part > 0:
                mask = _attention_mask(found[-1].masks, grid, part, tokens.shape[1])
        tokens = layer(tokens, mask)
    return [*found, _predicted(network, tokens, grid)]


def _predicted(network: Any, tokens: Tensor, grid: tuple[int, int]) -> Prediction:
    network.grid_size = grid  # which transformers keeps from its config
    masks, classes = network.predict(network.layernorm(tokens))
    return Prediction(classes, masks)


def _embedded(embeddings: Any, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, L, .) tokens of class, registers and patches."""
    height, width = embeddings.patch_embeddings.image_size
    patch = embeddings.config.patch_size
    own = (height // patch, width // patch)
    if grid == own:
        return embeddings(images)
    places = embeddings.position_embeddings.weight.T.unflatten(1, own)[None]
    places = F.interpolate(places.float(), size=grid, mode="bicubic", align_corners=False)
    patches = embeddings.patch_embeddings(images) + places.flatten(2).transpose(1, 2)
    prefix = (embeddings.cls_token, embeddings.register_tokens)
    tokens = [own.expand(len(images), -1, -1) for own in prefix]
    return embeddings.dropout(torch.cat([*tokens, patches], dim=1))


@torch.no_grad()
def _attention_mask(masks: Tensor, grid: tuple[int, int], part: float, length: int) -> Tensor:
    """(N, 1, L, L) bool, where attention may look: queries at the patches inside of their mask.

    Args:
        masks: (N, Q, a, b) logits.
        grid: rows and columns of patches.
        part: of the queries, drawn at random, that do not look elsewhere.
        length: L; the queries come first, the patches last.
    """
    inside = F.interpolate(masks.float(), size=grid, mode="bilinear").flatten(2) > 0
    if part < 1:
        free = torch.rand(inside.shape[:2], device=masks.device) > part
        inside |= free[..., None]
    allowed = torch.ones(len(masks), length, length, dtype=torch.bool, device=masks.device)
    allowed[:, : inside.shape[1], length - inside.shape[2] :] = inside
    return allowed[:, None]

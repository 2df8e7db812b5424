"""Rows of a predictor picked for other classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2_cityscapes.convert.kinds import ConversionError
from d2_cityscapes.labels.rows import ClassRows

__all__ = ["pick_rows"]


def pick_rows(
    name: str,
    tensor: Tensor,
    rows: ClassRows,
    picked: Sequence[int | None],
    classes: int,
    generator: torch.Generator,
    *,
    like_others: bool = False,
) -> Tensor:
    """Rows of a tensor for other classes; those behind the classes, as of background, stay.

    Args:
        name, tensor: of the predictor, (each * classes + more, ...).
        rows: what is known of the layer.
        picked: for each new class the number of an old one; None for random rows, by ``rows.std``,
            with bias 0.
        classes: how many there were.
        generator: of the random numbers.
        like_others: random rows have mean and deviation of the whole tensor instead.

    Raises:
        ConversionError: another number of rows.
    """
    if not rows.fits(tensor, classes):
        expected = " or ".join(map(str, rows.numbers(classes)))
        raise ConversionError(
            f"{name} is {tuple(tensor.shape)}, but for {classes} classes it has {expected} rows"
        )
    blocks = tensor.reshape(-1, rows.each, *tensor.shape[1:])  # (classes + more, each, ...)

    def new() -> Tensor:
        # always drawn, so that another choice of one tensor leaves the numbers of the next alone
        noise = torch.randn(blocks.shape[1:], generator=generator, dtype=torch.float32)
        if like_others:
            values = blocks.float()
            noise = values.mean() + values.std(correction=0) * noise
        elif name.endswith(".bias"):
            noise = torch.zeros_like(noise)
        else:
            noise = rows.std * noise
        return noise.to(blocks.dtype)

    return torch.cat([new() if k is None else blocks[k] for k in picked] + [*blocks[classes:]])

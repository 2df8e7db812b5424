"""The dense part of a model compiled by torch.compile; proposals and regions of interest stay.

Those have as many rows as objects were found, another number in each image.
"""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase

import torch
import torch._dynamo
from torch import Tensor, nn

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["check_compiler", "compile_dense_parts"]

logger = logging.getLogger(__name__)

# Names of the modules that work on whole maps alone, whatever the meta-architecture. Not the heads
# of DeepLabV3Segmentor: their error about a batch of one image would reach nobody.
_PARTS = (
    "backbone",
    "proposal_generator.rpn_head",
    "sem_seg_head.levels.*",  # MiniDLSemSegHead
    "sem_seg_head.p?",  # SemSegFPNHead
)
# Variants of a part: in training and evaluation, for the first image size and for any, in each
# phase of MODEL.FREEZE.SCHEDULE. PyTorch stops at 8 and goes on uncompiled.
_VARIANTS = 64


def compile_dense_parts(model: nn.Module, *, backend: str = "inductor") -> list[str]:
    """Compile the parts of a model that work on whole maps, in place, when they first run.

    A second image size makes their graphs general in height and width. What changes otherwise
    (training or evaluation, what is frozen, precision) compiles again. Copies of the model are not
    compiled. Raises PyTorch's limit on variants for the whole process.

    Args:
        model: its names and tensors stay as they are.
        backend: of torch.compile.

    Returns:
        Names of the compiled modules.
    """
    names = [
        name
        for name, _ in model.named_modules()
        if any(name.count(".") == p.count(".") and fnmatchcase(name, p) for p in _PARTS)
    ]
    if not names:
        raise D2CityscapesError(
            f"MODEL.COMPILE: {type(model).__name__} has no backbone to compile: set it to False"
        )
    limits = torch._dynamo.config
    limits.cache_size_limit = max(limits.cache_size_limit, _VARIANTS)
    for name in names:
        model.get_submodule(name).compile(backend=backend)
    logger.info("torch.compile: %s", ", ".join(names))
    return names


def check_compiler(device: str) -> None:
    """Compile one small function, so that a missing compiler is found before training.

    Raises:
        D2CityscapesError: it does not work here.
    """
    try:
        torch.compile(_trial, fullgraph=True)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise D2CityscapesError(
            "MODEL.COMPILE: torch.compile does not work on this machine: install a C++ compiler "
            f"(g++), on a GPU Triton too, or set it to False ({reason})"
        ) from error


def _trial(x: Tensor) -> Tensor:
    return x + 1

"""The dense part of a model compiled by torch.compile; proposals and regions of interest stay.

Those have as many rows as objects were found, another number in each image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["MODES", "check_compiler", "check_mode", "compile_dense_parts"]

logger = logging.getLogger(__name__)

# Names of the modules that work on whole maps alone, whatever the meta-architecture. Not the heads
# of DeepLabV3Segmentor: their error about a batch of one image would reach nobody.
_PARTS = (
    "backbone",
    "proposal_generator.rpn_head",
    "sem_seg_head.levels.*",  # MiniDLSemSegHead
    "sem_seg_head.p?",  # SemSegFPNHead
)
# MODEL.COMPILE_MODE -> whether it replays CUDA graphs, where the device has them
MODES = {
    "default": False,
    "reduce-overhead": True,
    "max-autotune": True,
    "max-autotune-no-cudagraphs": False,
}
# Variants of a part: in training and evaluation, for the first image size and for any, or for each,
# and in each phase of MODEL.FREEZE.SCHEDULE. PyTorch stops at 8 of all parts together, as it counts
# by lines of code, and goes on uncompiled.
_VARIANTS = 64


def compile_dense_parts(
    model: nn.Module,
    *,
    mode: str = "default",
    sizes_vary: bool = True,
    backend: str | Callable[..., Any] = "inductor",
) -> list[str]:
    """Compile the parts of a model that work on whole maps, in place, when they first run.

    What changes (training or evaluation, what is frozen, precision) compiles again. Copies of the
    model are not compiled. Raises PyTorch's limit on variants for the whole process; what goes
    beyond it runs uncompiled, and the log says so.

    With a mode that replays CUDA graphs, what a part gives holds until the model is called again.

    Args:
        model: its names and tensors stay as they are.
        mode: one of `MODES`.
        sizes_vary: a second image size makes the graphs general in height and width. False: each
            size has its own, for few sizes (INPUT.SIZE_DIVISIBILITY).
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
    limits, most = torch._dynamo.config, _VARIANTS * len(names)
    limits.cache_size_limit = max(limits.cache_size_limit, most)
    limits.accumulated_cache_size_limit = max(limits.accumulated_cache_size_limit, most)
    logging.getLogger("torch._dynamo.convert_frame").addFilter(_say_what_helps)
    for name in names:
        part = model.get_submodule(name)
        part.compile(backend=backend, mode=mode, dynamic=None if sizes_vary else False)
    if MODES[mode]:
        model.register_forward_pre_hook(_begin_step)
    logger.info("torch.compile (%s): %s", mode, ", ".join(names))
    return names


def check_mode(mode: str, *, accumulate_steps: int = 1) -> None:
    """Refuse a MODEL.COMPILE_MODE that there is not, or that gives wrong gradients.

    A CUDA graph writes its gradients to the same place each time, where those of the batch before
    would have to stay.

    Raises:
        D2CityscapesError: naming the keys.
    """
    if mode not in MODES:
        raise D2CityscapesError(f"MODEL.COMPILE_MODE {mode!r}: use {', '.join(MODES)}")
    if MODES[mode] and accumulate_steps > 1:
        raise D2CityscapesError(
            f"MODEL.COMPILE_MODE {mode}: CUDA graphs do not add up the gradients of "
            f"SOLVER.ACCUMULATE_STEPS {accumulate_steps} batches: use default or "
            "max-autotune-no-cudagraphs"
        )


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


def _begin_step(model: nn.Module, inputs: Any) -> None:
    """Tell CUDA graphs that what they gave before is not needed any more.

    Or the second part to run in an evaluation would take the maps of the first for such.
    """
    torch.compiler.cudagraph_mark_step_begin()


def _say_what_helps(record: logging.LogRecord) -> bool:
    """A filter of PyTorch's log that lets all pass, and adds a line where compiling ends."""
    if "recompile_limit" in str(record.args) or "cache_size_limit" in str(record.args):
        logger.warning(
            "MODEL.COMPILE: %d variants of the parts are compiled, further ones run uncompiled: "
            "let fewer sizes occur (INPUT.SIZE_DIVISIBILITY, INPUT.MIN_SIZE_TRAIN)",
            torch._dynamo.config.cache_size_limit,
        )
    return True

"""A GPU without memory left, told in one line: what ran, and which keys need less of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode

from d2_cityscapes.engine.devices import peak_memory
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.memory import fragmentation_advice, is_out_of_memory

__all__ = ["GpuMemoryError", "during", "explained", "images_in_words"]


class GpuMemoryError(D2CityscapesError):
    """The memory of a GPU was too small for what was asked of it."""


@contextlib.contextmanager
def during(what: Callable[[], str]) -> Iterator[None]:
    """Note what ran when a GPU had no memory left in the block, for the line of `explained`.

    Args:
        what: gives it, such as "iteration 12".
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            vars(error).setdefault("__notes__", []).append(what())  # add_note of Python 3.11
        raise


@contextlib.contextmanager
def explained(cfg: CfgNode) -> Iterator[None]:
    """Make one line of what PyTorch, cuBLAS or cuDNN raise where a GPU has no memory left.

    Args:
        cfg: of the run; keys that would help are named where they are not in force.

    Raises:
        GpuMemoryError: with what ran (see `during`), the innermost last.
    """
    try:
        yield
        return
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        noted = [note for note in getattr(error, "__notes__", ()) if "\n" not in note]
    # here, where the error has let go of what its frames held
    raise GpuMemoryError(_line(cfg, noted[::-1]))


def images_in_words(batch: list[dict[str, Any]]) -> str:
    """ "4 images of up to 1024 x 2048 px", of the input of a model."""
    sizes = [tuple(image["image"].shape[-2:]) for image in batch]
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    number = "1 image of" if len(batch) == 1 else f"{len(batch)} images of up to"
    return f"{number} {height} x {width} px"


def _line(cfg: CfgNode, noted: list[str]) -> str:
    where = f" in {', '.join(noted)}" if noted else ""
    memory = peak_memory(torch.device(cfg.MODEL.DEVICE))
    held = "" if not memory else f" (tensors held {memory[0] / 2**30:.1f} GiB)"
    text = f"the memory of {cfg.MODEL.DEVICE} was too small{where}{held}: {_remedies(cfg)}"
    advice = "" if not memory else fragmentation_advice(*memory)
    return f"{text}. {advice}" if advice else text


def _remedies(cfg: CfgNode) -> str:
    solver, model, jitter = cfg.SOLVER, cfg.MODEL, cfg.INPUT.SCALE_JITTER.ENABLED
    fewer = "fewer SOLVER.IMS_PER_BATCH, with SOLVER.ACCUMULATE_STEPS for as large a step"
    keys = {
        "SOLVER.AMP.ENABLED True": not solver.AMP.ENABLED,
        "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING True": not model.BACKBONE.ACTIVATION_CHECKPOINTING,
        fewer: solver.IMS_PER_BATCH > 1,
        "smaller crops (INPUT.SCALE_JITTER.CROP_SIZE)": jitter,
        "smaller images (INPUT.MIN_SIZE_TRAIN, INPUT.MIN_SIZE_TEST)": not jitter,
    }
    found = ", ".join(key for key, helps in keys.items() if helps)
    return f"training needs less with {found}; train_net.py --dry-run prints the largest batch"

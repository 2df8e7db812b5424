"""How a run computes: on which card, in which arithmetic. In force for its time, then as before.

TF32 is float32 with 10 instead of 23 bits of mantissa in the products of Ampere cards and later,
several times as fast. PyTorch uses it for convolutions, and does not for matrix products.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from d2_cityscapes.config import model_tasks
from d2_cityscapes.engine.devices import (
    device_name,
    lacks_bfloat16,
    lacks_kernels,
    on_card,
    peak_memory,
)
from d2_cityscapes.engine.out_of_memory import explained
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.memory import fragmentation_advice

__all__ = [
    "MemoryAdviceHook",
    "check_computing",
    "computed_on",
    "computing",
    "refused_in_a_line",
    "tf32",
    "tf32_in_force",
    "varying_sizes",
]

logger = logging.getLogger(__name__)

# SOLVER.TF32 -> whether it is used; None: as PyTorch has it
_TF32 = {"": None, "all": True, "none": False}
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def check_computing(cfg: CfgNode) -> None:
    """Refuse settings of the arithmetic that there are not, or that contradict each other.

    Raises:
        ConfigError: of SOLVER.TF32 or SOLVER.DETERMINISTIC.
    """
    if cfg.SOLVER.TF32 not in _TF32:
        raise ConfigError(
            f"SOLVER.TF32 {cfg.SOLVER.TF32!r}: use all, none, or '' for what PyTorch does"
        )
    if cfg.SOLVER.DETERMINISTIC and cfg.CUDNN_BENCHMARK:
        raise ConfigError(
            "SOLVER.DETERMINISTIC True: not with CUDNN_BENCHMARK True, which chooses the kernels "
            "by their time"
        )


@contextlib.contextmanager
def computing(cfg: CfgNode) -> Iterator[None]:
    """Put MODEL.DEVICE, SOLVER.TF32 and SOLVER.DETERMINISTIC into force for this process.

    Where MODEL.DEVICE has a number, that card is the current one. What is so is logged. In the end
    all is as it was before.

    Raises:
        ConfigError: see `check_computing`; or a card that this PyTorch has no kernels for.
        GpuMemoryError: the card had no memory left for what was done in the block.
    """
    check_computing(cfg)
    device = torch.device(cfg.MODEL.DEVICE)
    with on_card(device), tf32(_TF32[cfg.SOLVER.TF32]), _deterministic(cfg.SOLVER.DETERMINISTIC):
        _check_card(cfg, device)
        how = computed_on(device)
        logger.info("computes with %s", ", ".join(f"{k} {v}".strip() for k, v in how.items()))
        with explained(cfg):
            yield


def computed_on(device: torch.device | str) -> dict[str, str]:
    """What numbers follow from beside config and versions: the device and its arithmetic, by name.

    "device", "TF32" on CUDA ("convolutions, matrix products", one of them, or "off"), and
    "deterministic" where it is in force.
    """
    device = torch.device(device)
    found = {"device": device_name(device)}
    if device.type == "cuda":
        used = [name for name, on in zip(_PRODUCTS, tf32_in_force(), strict=True) if on]
        found["TF32"] = ", ".join(used) or "off"
    if torch.are_deterministic_algorithms_enabled():
        found["deterministic"] = "yes"
    return found


@contextlib.contextmanager
def refused_in_a_line() -> Iterator[None]:
    """Make one line of what PyTorch raises for an operation that SOLVER.DETERMINISTIC forbids."""
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise ConfigError(
            f"SOLVER.DETERMINISTIC True: {operation} always adds in any order on this device: set "
            "it to False, or leave out the part of the model that needs it"
        ) from error


class MemoryAdviceHook(HookBase):
    """Says once, after an epoch, what helps where a GPU's memory is in fragments.

    Args:
        images: in a step, of all processes.
    """

    def __init__(self, images: int) -> None:
        self._images = images
        self._left = 0

    def before_train(self) -> None:
        epoch = self.trainer.data_loader.images  # None of a loader that does not tell
        self._left = math.ceil(epoch.used / self._images) if epoch else 0

    def after_step(self) -> None:
        self._left -= 1
        if self._left == 0:
            memory = peak_memory(next(self.trainer.model.parameters()).device)
            advice = "" if memory is None else fragmentation_advice(*memory)
            if advice:
                logger.warning(advice)


def varying_sizes(cfg: CfgNode) -> str:
    """What of a training has another size in every step, as text; "" where all stays the same.

    For each size CUDNN_BENCHMARK tries all kernels of each convolution first.
    """
    found = []
    crop = cfg.INPUT.CROP.TYPE if cfg.INPUT.CROP.ENABLED else ""
    one_size = cfg.INPUT.FIXED_SIZE or cfg.INPUT.SCALE_JITTER.ENABLED
    scales = 1 if one_size else len(set(cfg.INPUT.MIN_SIZE_TRAIN))
    if scales > 1 and crop != "absolute":
        found.append("images (INPUT.MIN_SIZE_TRAIN)")
    if crop.endswith("range"):
        found.append("crops (INPUT.CROP.TYPE)")
    if "segm" in model_tasks(cfg):
        found.append("the objects of a batch, which the mask head convolves")
    return " and ".join(found)


def _check_card(cfg: CfgNode, device: torch.device) -> None:
    missing = lacks_kernels(device)
    if missing:
        raise ConfigError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE!r}: {missing}: install PyTorch with kernels for it "
            "(--index-url https://download.pytorch.org/whl/cuXXX of another CUDA)"
        )
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.DTYPE == "bfloat16" and lacks_bfloat16(device):
        logger.warning(
            "SOLVER.AMP.DTYPE bfloat16: %s computes it in float32 and is slower so; use float16",
            device_name(device),
        )
    varying = varying_sizes(cfg) if cfg.CUDNN_BENCHMARK and device.type == "cuda" else ""
    if varying:
        logger.warning(
            "CUDNN_BENCHMARK True: of another size in each step are %s, and for each size all "
            "kernels are tried anew: it is for trainings of one size, see configs/semantic",
            varying,
        )


_PRODUCTS = ("convolutions", "matrix products")


def tf32_in_force() -> tuple[bool, bool]:
    """Whether CUDA's convolutions, and its matrix products, use TF32."""
    flags: tuple[Any, Any] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    try:
        return flags[0].allow_tf32, flags[1].allow_tf32
    except RuntimeError:  # set by the names that PyTorch has had since 2.9: it reads these alone
        return flags[0].conv.fp32_precision == "tf32", flags[1].fp32_precision == "tf32"


@contextlib.contextmanager
def tf32(use: bool | None) -> Iterator[None]:
    """Let products of float32 numbers on CUDA be TF32, or not, in the block; None leaves it."""
    if use is None:
        yield
        return
    before = tf32_in_force()
    places: tuple[Any, ...] = (
        getattr(torch.backends.cudnn, "conv", None),
        torch.backends.cuda.matmul,
    )
    places = tuple(place for place in places if hasattr(place, "fp32_precision"))
    names = [place.fp32_precision for place in places]
    _set_tf32(use, use)
    for place in places:  # "none", what the old name has set, is "as for all": perhaps TF32
        place.fp32_precision = "tf32" if use else "ieee"
    try:
        yield
    finally:
        _set_tf32(*before)
        for place, name in zip(places, names, strict=True):
            place.fp32_precision = name


def _set_tf32(convolutions: bool, matrix_products: bool) -> None:
    """By the old names, which set the new ones too: so that either may be read."""
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = matrix_products


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(_WORKSPACE)
    # What cuBLAS reads when it starts; without, PyTorch refuses each of its products.
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        with refused_in_a_line():
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)

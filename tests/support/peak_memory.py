"""Peak memory of a training step, counted on a pretended CUDA device: ours, and stock Detectron2's.

    python tests/support/peak_memory.py mask_rcnn panoptic --side ours stock --precision bfloat16

Counted are the bytes of live storages at the worst moment: weights, gradients, the optimizer's
states, targets, activations, and what is made of them for a while. Not counted: CUDA's context,
workspaces of cuDNN, the allocator's rounding and fragments (together 0.5 to 1 GiB on a card), and
what exists inside of one operation only.

What is made of large feature maps, nearly all of the time and the memory of this process, is not
computed: it is zeros of the right shape, type and layout, which the system holds only where they
are written to. So every proposal is an anchor; boxes of objects are put among them, as many as the
RoI heads take at most (`objects_proposed`), and the RoI heads have all their work.

The mixed precision of stock is float16, the only one of Detectron2 0.6's trainer. Its DeepLabv3 is
that of Detectron2's project of this name. `--top N` lists what was alive at the peak, by the line
of code that made it.
"""

from __future__ import annotations

import argparse
import collections
import gc
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from compared_sides import as_stock, images, stock_optimizer, stock_step
from detectron2.config import CfgNode
from detectron2.modeling import build_model as build_stock_model
from detectron2.utils.events import EventStorage
from fake_cuda import FakeCuda
from fake_cuda.places import CUDA
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import d2_cityscapes.engine.trainer  # noqa: F401  (torch.jit.script reads the true torch)
from d2_cityscapes.engine.proposed_objects import objects_proposed
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.step.optimizer import build_optimizer, optimized_parameters
from d2_cityscapes.engine.step.training_step import build_training_step
from d2_cityscapes.modeling.build import build_model

__all__ = ["FAMILIES", "Peak", "measure", "step_peak", "without_maps"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FAMILIES = {
    "deeplab": "stage0.yaml",
    "heads": "full_resolution/stage1.yaml",
    "mask_rcnn": "full_resolution/stage3.yaml",
    "panoptic": "full_resolution/stage4.yaml",
    "panoptic_fpn": "panoptic/panoptic_fpn_R_50.yaml",
    "seamless": "panoptic/seamless_R_50_FPN_1gpu.yaml",
}
PRECISIONS = ("float32", "bfloat16", "float16")
_LARGE_MAPS, _LARGE_MASKS = 1 << 15, 1 << 24  # elements
_TO, _META = torch.Tensor.to, torch.device("meta")


class _Unfilled(TorchDispatchMode):
    """What is made of large feature maps is zeros; the rest is left to the mode below."""

    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        computed = func.is_view or "_foreach_" in name or "_fused_" in name
        if computed or not any(map(self._is_large, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            return args[0] if name.endswith("_") else func(*args, **kwargs)
        try:
            with self.gpu.quiet():
                shapes = func(*map(_shape, args), **{k: _shape(v) for k, v in kwargs.items()})
        except NotImplementedError:  # the shape follows from the numbers
            return func(*args, **kwargs)
        several = isinstance(shapes, tuple | list)
        results = [_zeros_like(shape) for shape in (shapes if several else (shapes,))]
        for result in results:
            if result is not None:
                self.gpu.books.put(result, CUDA)
        return type(shapes)(results) if several else results[0]

    def _is_large(self, value: Any) -> bool:
        """Whether it is, or has in it, large feature maps or bitmaps on the pretended GPU."""
        if isinstance(value, list | tuple):
            return any(map(self._is_large, value))
        if not isinstance(value, torch.Tensor):
            return False
        maps = value.dim() == 4 and value.is_floating_point() and value.numel() >= _LARGE_MAPS
        masks = value.dim() == 3 and value.dtype == torch.bool and value.numel() >= _LARGE_MASKS
        return (maps or masks) and self.gpu.on_gpu(value)


def _shape(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_shape, value))
    return _TO(value, _META) if isinstance(value, torch.Tensor) else value


def _zeros_like(shape: torch.Tensor | None) -> torch.Tensor | None:
    """Zeros in the same layout, whose memory the system hands out when they are written to."""
    if shape is None:
        return None
    width = shape.element_size()
    flat = np.zeros(shape.untyped_storage().nbytes() // width, f"i{width}")  # or bool, which is i1
    flat = torch.from_numpy(flat).view(shape.dtype)
    return flat.as_strided(shape.shape, shape.stride())


@contextmanager
def without_maps(gpu: FakeCuda) -> Iterator[None]:
    """Products and convolutions of the pretended GPU are zeros: steps take seconds, not minutes."""
    with _Unfilled(gpu):
        yield


class Peak:
    """What was alive when most was.

    Attributes:
        static: bytes before the step: weights, optimizer states, images and targets.
        bytes: at the peak.
        lines: (line, operation, shape and type) -> bytes alive at the peak, if asked for.
    """

    def __init__(self, static: int, peak: int, lines: collections.Counter[str]) -> None:
        self.static, self.bytes, self.lines = static, peak, lines

    def table(self, most: int) -> str:
        rows = [f"{size / 2**20:9.1f} MiB  {line}" for line, size in self.lines.most_common(most)]
        return "\n".join(rows)


@contextmanager
def _by_line(gpu: FakeCuda) -> Iterator[collections.Counter[str]]:
    """Fills a counter with what is alive at the peak, by the line of code that made it."""
    books, put = gpu.books, gpu.books.put
    origin: dict[int, str] = {}
    found: collections.Counter[str] = collections.Counter()
    seen = 0

    def noted(tensor: torch.Tensor, place: Any) -> None:
        nonlocal seen
        put(tensor, place)
        key = tensor.untyped_storage()._cdata
        if place != CUDA:
            return
        node = torch._C._current_autograd_node()
        where = f"backward of {node.name()}" if node is not None else _made_at()
        origin[key] = f"{str(tensor.dtype)[6:]:<9} {tuple(tensor.shape)!s:<22} {where}"
        if books.peak > 1.002 * seen + 2**20:
            seen = books.peak
            found.clear()
            for own, (where_is, ref, size) in books.places.items():
                if where_is == CUDA and not ref.expired():
                    found[origin.get(own, "before the step")] += size

    books.put = noted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        books.put = put  # type: ignore[method-assign]


def _made_at() -> str:
    """The three innermost lines of code of the packages whose memory is asked about."""
    found, frame = [], sys._getframe(2)
    while frame is not None and len(found) < 3:
        _, package, file = frame.f_code.co_filename.rpartition("/d2_cityscapes/")
        if not package:
            _, package, file = frame.f_code.co_filename.rpartition("/detectron2/")
        if package and not file.startswith("layers/wrappers"):
            found.append(f"{file}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found)


def step_peak(
    cfg: CfgNode, batch: list, gpu: FakeCuda, *, stock: bool, lines: bool = False
) -> Peak:
    """Of one step, after one that is not counted.

    Args:
        cfg: for stock that of `as_stock`.
        batch: as the mapper gives it.
        gpu: entered.
        stock: Detectron2's model and trainer in place of ours.
        lines: count by line of code too.
    """
    model = (build_stock_model if stock else build_model)(cfg)
    model.train()
    rpn = getattr(model, "proposal_generator", None)
    if isinstance(rpn, nn.Module):
        rpn.register_forward_hook(objects_proposed(cfg))
    optimizer = stock_optimizer(cfg, model) if stock else build_optimizer(cfg, model)
    for parameter in optimized_parameters(optimizer):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # it makes its states; the gradients stay, as those of the step before
    data = iter(lambda: batch, None)
    step = stock_step(cfg, model, data, optimizer) if stock else None
    step = step or build_training_step(cfg, model, data, optimizer)
    step.iter = 0
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    static = torch.cuda.memory_allocated()
    found: collections.Counter[str] = collections.Counter()
    with EventStorage(), without_maps(gpu):
        if lines:
            with _by_line(gpu) as found:
                step.run_step()
        else:
            step.run_step()
    return Peak(static, torch.cuda.max_memory_allocated(), found)


def measure(
    family: str, *, stock: bool, precision: str, size: tuple[int, int], number: int,
    objects: int = 20, lines: bool = False, overrides: tuple[str, ...] = (),
) -> Peak:  # fmt: skip
    """The peak of a step of `number` images, in this process."""
    with FakeCuda(memory=1 << 40) as gpu, tempfile.TemporaryDirectory() as output:
        amp = ("False",) if precision == "float32" else ("True", "SOLVER.AMP.DTYPE", precision)
        opts = ("MODEL.DEVICE", "cuda", "OUTPUT_DIR", output, "SOLVER.ACCUMULATE_STEPS", "1",
                "MODEL.WEIGHTS", "", "SOLVER.AMP.ENABLED", *amp, *overrides)  # fmt: skip
        cfg = load_config(CONFIGS / FAMILIES[family], opts, train=False)
        cfg = as_stock(cfg) if stock else cfg
        return step_peak(
            cfg, images(cfg, size, number, objects, stock=stock), gpu, stock=stock, lines=lines
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Text)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"{', '.join(FAMILIES)}")
    parser.add_argument("--side", nargs="+", choices=("ours", "stock"), default=["ours", "stock"])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["bfloat16"])
    parser.add_argument("--size", nargs=2, type=int, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=4, help="images in a step")
    parser.add_argument("--objects", type=int, default=20, help="in an image")
    parser.add_argument("--top", type=int, default=0, metavar="N", help="lines of code at the peak")
    parser.add_argument("--set", nargs="+", default=(), metavar="KEY VALUE", help="overrides")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(
        "| family | side | precision | peak, GiB | of it before the step |\n|---|---|---|---|---|"
    )
    for family in args.families or FAMILIES:
        for precision in args.precision:
            for side in args.side:
                _row(args, family, precision, side)


def _row(args: argparse.Namespace, family: str, precision: str, side: str) -> None:
    stock = side == "stock"
    peak = measure(
        family, stock=stock, precision=precision, size=tuple(args.size), number=args.batch,
        objects=args.objects, lines=args.top > 0, overrides=tuple(args.set),
    )  # fmt: skip
    kind = "float16" if stock and precision != "float32" else precision
    sizes = " | ".join(f"{size / 2**30:.2f}" for size in (peak.bytes, peak.static))
    print(f"| {family} | {side} | {kind} | {sizes} |", flush=True)
    if args.top:
        print(peak.table(args.top), flush=True)


class _Text(argparse.RawDescriptionHelpFormatter):
    """The docstring as it stands."""


if __name__ == "__main__":
    main()

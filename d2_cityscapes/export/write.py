"""A graph as a file, in one of the formats that run.py runs."""

from __future__ import annotations

import contextlib
import logging
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from d2_cityscapes.dependencies import import_extra
from d2_cityscapes.export.build import SizedGraph
from d2_cityscapes.export.kinds import FORMATS, ExportError

__all__ = ["OPSET", "exporter_of", "trace", "write_graph"]

OPSET = 20  # of ONNX; with it GridSample, RoiAlign and NonMaxSuppression are what PyTorch's are
_NAMES = ("image", "size")


def trace(graph: Any) -> ExportedProgram:
    """The graph as operations, of one size or of any, by `torch.export.export`.

    Args:
        graph: of `build_graph`.

    Raises:
        ExportError: a layer that cannot be traced.
    """
    sizes, multiple = graph.pixels.sizes, graph.pixels.multiple
    inputs: tuple[Tensor, ...]
    shapes: dict[str, Any] | None
    if sizes is not None:
        module: nn.Module = SizedGraph(graph, sizes)
        inputs, shapes = (torch.zeros((*sizes.network, 3), dtype=torch.uint8),), None
    else:
        module = graph
        side = -(-96 // multiple) * multiple  # small, and no square, which would stay one
        height, width = side, side + max(multiple, 32)
        image = torch.zeros((height, width, 3), dtype=torch.uint8)
        inputs = (image, torch.tensor([height, width, height, width]))
        # a network's own least size is found by the tracing, but not of a multiple of something
        sides: dict[int, Any] = dict.fromkeys((0, 1), Dim.DYNAMIC)
        if multiple > 1:
            sides = {0: multiple * Dim("rows"), 1: multiple * Dim("columns")}
        shapes = {"image": sides, "size": None}
    try:
        with torch.no_grad(), _quietly():
            return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises anything, by whatever layer
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
        raise ExportError(f"the model cannot be traced by torch.export: {reason}") from error


def write_graph(
    program: ExportedProgram, kind: str, folder: Path, outputs: tuple[str, ...]
) -> list[str]:
    """Write the model's file, or two of them, into a folder.

    Args:
        program: of `trace`.
        kind: one of `GRAPHS`.
        folder: there already.
        outputs: names of what it gives.

    Returns:
        Names of the files.

    Raises:
        ExportError: the exporter failed.
        D2CityscapesError: what writes the format is not installed.
    """
    path = folder / FORMATS[kind][0]
    if kind == "torch-export":
        _forget_places(program)
        torch.export.save(program, path)
    elif kind == "onnx":
        _write_onnx(program, path, outputs)
    else:
        openvino = import_extra("openvino", "--format openvino")
        between = folder / "between.onnx"
        _write_onnx(program, between, outputs)
        openvino.save_model(openvino.convert_model(between), path, compress_to_fp16=False)
        for part in folder.glob("between.onnx*"):
            part.unlink()
    return sorted(file.name for file in folder.iterdir() if file.stem.startswith("model"))


def exporter_of(kind: str) -> dict[str, Any]:
    """What has made the file, for model.json."""
    if kind == "torch-export":
        return {"exporter": f"torch.export.save of torch {torch.__version__}"}
    exporter = f"torch.onnx.export(dynamo=True) of torch {torch.__version__}"
    if kind == "openvino":
        version = import_extra("openvino", "--format openvino").__version__
        exporter += f", openvino.convert_model of {version}"
    return {"exporter": exporter, "opset": OPSET}


def _write_onnx(program: ExportedProgram, path: Path, outputs: tuple[str, ...]) -> None:
    for module in ("onnx", "onnxscript"):
        import_extra(module, "--format onnx", extra="onnx")
    names = list(_NAMES[: len(program.graph_signature.user_inputs)])
    try:
        with _quietly():
            made: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=list(outputs),
                verbose=False,
            )
    except Exception as error:  # of any operator without a translation
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
        raise ExportError(f"the model cannot be made ONNX: {reason}") from error
    _forget_origins(made.model)
    made.save(path)


def _forget_origins(model: Any) -> None:
    """Take out which lines of code operations come from: megabytes, with paths of this disk."""
    graph = model.graph
    for part in (model, graph, *graph.inputs, *graph.initializers.values()):
        part.metadata_props.clear()
    for node in graph.all_nodes():
        for part in (node, *node.outputs):
            part.metadata_props.clear()
        node.doc_string = None


def _forget_places(program: ExportedProgram) -> None:
    """Likewise."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
                node.meta.pop(name, None)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' words about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)

"""Which formats there are, known without importing what they need."""

from __future__ import annotations

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["FORMATS", "GRAPHS", "ExportError"]

# format -> (the file of the model, what it is)
FORMATS = {
    "onnx": ("model.onnx", "ONNX Runtime, and whatever else reads ONNX"),
    "torch-export": ("model.pt2", "a graph of torch.export; torch and torchvision run it"),
    "openvino": ("model.xml", "OpenVINO, on Intel's processors and graphics"),
    "detectron2": ("model.pth", "config and weights for stock Detectron2"),
    "safetensors": ("model.safetensors", "config and weights for this package, without code"),
}
GRAPHS = ("onnx", "torch-export", "openvino")  # those that run.py runs


class ExportError(D2CityscapesError):
    """A model that cannot be exported, or an export that differs from it."""

"""Files of tensors and arrays: read without running what they may hold, written whole or not."""

from d2_cityscapes.tensor_files.errors import TensorFileError
from d2_cityscapes.tensor_files.files import pickles_allowed, read_tensor_file, write_tensor_file
from d2_cityscapes.tensor_files.safe_tensors import (
    SAFETENSORS,
    read_safetensors,
    read_texts,
    write_safetensors,
)

__all__ = [
    "SAFETENSORS",
    "TensorFileError",
    "pickles_allowed",
    "read_safetensors",
    "read_tensor_file",
    "read_texts",
    "write_safetensors",
    "write_tensor_file",
]

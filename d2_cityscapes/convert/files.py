"""Files of weights: read without running what they may hold, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2_cityscapes.convert.kinds import ConversionError
from d2_cityscapes.engine.checkpoints.weights_file import (
    About,
    as_checkpoint,
    read_weights_file,
    write_weights_file,
)
from d2_cityscapes.labels.record import CLASSES
from d2_cityscapes.tensor_files import SAFETENSORS, TensorFileError

__all__ = [
    "STEPS",
    "Conversion",
    "convert_weights",
    "counted",
    "mismatch",
    "read_checkpoint",
    "read_content",
    "read_weights",
    "write_conversion",
    "write_weights",
]

STEPS = "num_batches_tracked"  # counts training steps; no norm with fixed momentum reads it
_OTHER_NAMES = (".pkl", ".pyth")


@dataclass(frozen=True)
class Conversion:
    """Converted weights.

    Attributes:
        tensors: name -> tensor.
        report: lines for the user: what was converted and what was not.
        classes: what the rows of the heads stand for, see `d2_cityscapes.labels.record`; None where
            there are no heads, or nobody knows.
        sources: name -> the name that the tensor had in the file, where it had another.
    """

    tensors: dict[str, Tensor]
    report: tuple[str, ...]
    classes: Mapping[str, Any] | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def summary(self, weights: Mapping[str, Tensor]) -> str:
        """What became of the tensors of a file, in numbers; `details` has the names."""
        kinds = [line.split()[0] for line in self.details(weights)]
        order = ("matched", "changed", "reshaped", "made", "skipped")
        numbers = (f"{kinds.count(kind)} {kind}" for kind in order if kind in kinds)
        return f"{counted(len(weights), 'tensor')} in the file: {', '.join(numbers)}"

    def details(self, weights: Mapping[str, Tensor]) -> list[str]:
        """A line for every tensor, of the file or made.

        "matched A -> B", with its values; "changed A -> B", of the same shape; "reshaped A (91,
        1024) -> B (81, 1024)"; "made B"; "skipped A".
        """
        lines, used = [], set()
        for ours, tensor in self.tensors.items():
            theirs = self.sources.get(ours, ours)
            used.add(theirs)
            before = weights.get(theirs)
            if before is None:
                lines.append(f"made {ours}")
            elif before.shape != tensor.shape:
                shapes = tuple(before.shape), tuple(tensor.shape)
                lines.append(f"reshaped {theirs} {shapes[0]} -> {ours} {shapes[1]}")
            else:
                same = before is tensor or before.equal(tensor)
                names = ours if theirs == ours else f"{theirs} -> {ours}"
                lines.append(f"{'matched' if same else 'changed'} {names}")
        return lines + [f"skipped {name}" for name in weights if name not in used]


def convert_weights(
    convert: Callable[[Mapping[str, Tensor]], Conversion],
    input: Path,
    output: Path,
    *,
    details: bool = False,
) -> tuple[str, ...]:
    """Read a file, convert its tensors, write another; returns the lines of the report.

    Args:
        convert: from tensors to tensors.
        input, output: the files.
        details: whether the report has a line for every tensor.

    Raises:
        ConversionError: of `convert`, with the file; a file that cannot be read.
    """
    weights = read_weights(input)
    try:
        found = convert(weights)
    except ConversionError as error:
        raise ConversionError(f"{input}: {error}", details=error.details) from error
    return write_conversion(output, found, weights, details=details)


def write_conversion(
    output: Path, found: Conversion, weights: Mapping[str, Tensor], *, details: bool = False
) -> tuple[str, ...]:
    """Write what was made of the weights; returns the lines of the report."""
    write_weights(output, found.tensors, found.classes)
    listed = found.details(weights) if details else []
    return (*found.report, found.summary(weights), *listed, f"wrote {output}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The second half of `read_content`."""
    return read_content(path)[1]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any] | None]:
    """As `read_content`, but of the rest of the file the class record only, if there is one."""
    content, weights = read_content(path)
    classes = content.get(CLASSES)
    return weights, classes if isinstance(classes, Mapping) else None


def read_content(
    path: Path, *, any_names: bool = False
) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Read all that a file holds, and of it name -> tensor, on the CPU.

    Args:
        path: a file of PyTorch with a state dict, ``{"model": state dict}`` or, as seamseg writes
            it, ``{"state_dict": {part: state dict}}``, whose names become "part.name"; or a
            ``.pkl`` of numpy arrays as in Detectron2's model zoo. Code in either is never run. Or
            ``.safetensors``.
        any_names: also takes Caffe2's and pycls', which Detectron2 matches with those of a model.

    Raises:
        ConversionError: no such file, damaged, or something else than named tensors.
    """
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    try:
        content = read_weights_file(path)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror})") from error
    except TensorFileError as error:
        raise ConversionError(str(error)) from error
    if any_names and isinstance(content, dict) and path.suffix in _OTHER_NAMES:
        content = as_checkpoint(content, path.suffix)
    if isinstance(content, Mapping) and "blobs" in content:
        raise ConversionError(
            f"{path}: weights of Caffe2's Detectron, whose layers have other names; take a model "
            "of Detectron2's model zoo"
        )
    weights = _find_weights(content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not weights:
        raise ConversionError(f"{path}: no weights in it, by name or under 'model' or 'state_dict'")
    tensors = {name: _tensor(value) for name, value in weights.items()}
    strangers = [name for name, value in tensors.items() if value is None]
    if strangers:
        raise ConversionError(f"{path}: {strangers[0]!r} is no tensor, so these are not weights")
    found = {str(name): value for name, value in tensors.items() if value is not None}
    return content, found


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], classes: Mapping[str, Any] | None = None
) -> None:
    """Write weights and a class record, as ``.pth`` or ``.safetensors``; see `write_weights_file`.

    Raises:
        ConversionError: another name, which would be read as another format.
        D2CityscapesError: the disk refused.
    """
    if path.suffix not in (".pth", SAFETENSORS):
        raise ConversionError(f"{path}: name it .pth or .safetensors, by which its format is known")
    if path.suffix == ".pth":
        # Contiguous clones: a view would take the whole storage it looks at into the file.
        tensors = {name: x.detach().contiguous().clone() for name, x in tensors.items()}
    write_weights_file(path, tensors, About(classes=classes))


def mismatch(message: str, problems: Sequence[str]) -> ConversionError:
    """One error for any number of problems: the first in its line, all in its details."""
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return ConversionError(f"{message}: {problems[0]}{more}", details=problems)


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 tensor", "2 tensors"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _find_weights(content: Mapping[str, Any]) -> Any:
    if "state_dict" not in content:
        return content.get("model", content)
    parts = content["state_dict"]
    if not isinstance(parts, Mapping) or not all(isinstance(p, Mapping) for p in parts.values()):
        return parts
    return {f"{part}.{name}": x for part, tensors in parts.items() for name, x in tensors.items()}


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        return torch.from_numpy(np.array(value))
    return None

"""Weights of anybody as ``.safetensors``, with what is known of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from d2_cityscapes.convert.files import Conversion, counted, read_content
from d2_cityscapes.convert.kinds import ConversionError
from d2_cityscapes.engine.checkpoints.weights_file import (
    About,
    about_content,
    read_about,
    write_weights_file,
)
from d2_cityscapes.files import file_errors
from d2_cityscapes.modeling.anchors.record import find_records
from d2_cityscapes.run_folder import CONFIG
from d2_cityscapes.tensor_files import SAFETENSORS
from d2_cityscapes.yaml_text import load_yaml

__all__ = ["convert_to_safetensors"]


def convert_to_safetensors(
    input: Path, output: Path, *, config_file: str | Path | None = None, details: bool = False
) -> tuple[str, ...]:
    """Write the tensors of a file under their names; see `d2_cityscapes.convert.convert_file`.

    Args:
        input: what Detectron2 and this package read as MODEL.WEIGHTS, Caffe2's and pycls' weights
            too.
        output: ``.safetensors``.
        config_file: the whole config of the weights; by default that in ``.safetensors``, or
            config.yaml beside the input, if it is whole.
        details: whether the report has a line for every tensor.

    Raises:
        ConversionError: weights or a config that cannot be read, or another ending of the output.
        D2CityscapesError: the disk refused.
    """
    content, tensors = read_content(input, any_names=True)
    if output.suffix != SAFETENSORS:
        raise ConversionError(f"{output}: name it {SAFETENSORS}, by which its format is known")
    about = about_content(content)
    if input.suffix == SAFETENSORS:
        about = read_about(input)
    beside = input.parent / CONFIG
    if config_file:
        about = dataclasses.replace(about, config=_whole_config(Path(config_file)))
    elif not about.config and beside.is_file():
        try:
            about = dataclasses.replace(about, config=_whole_config(beside))
        except ConversionError:  # of whatever else it is the config
            config_file = None
        else:
            config_file = beside
    write_weights_file(output, tensors, about)
    listed = Conversion(tensors, ()).details(tensors) if details else []
    known = _known(about, bool(find_records(tensors)), config_file)
    return (f"{counted(len(tensors), 'tensor')}, with {known}", *listed, f"wrote {output}")


def _whole_config(path: Path) -> str:
    """The text of a config that needs no other file."""
    with file_errors(path, ConversionError):
        text = path.read_bytes()
    try:
        content = load_yaml(text.decode())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConversionError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or "_BASE_" in content:
        raise ConversionError(f"{path}: not a whole config; take the {CONFIG} of a training")
    return text.decode()


def _known(about: About, anchors: bool, config_file: str | Path | None) -> str:
    """What goes with the weights, in words."""
    parts = []
    if about.classes:
        parts.append(f"the classes of {about.classes.get('table', '?')}")
    if anchors:
        parts.append("their anchors")
    if about.config:
        parts.append(f"the config {config_file}" if config_file else "their config")
    if about.heuristics:
        parts.append(f"the names of {about.heuristics}, which Detectron2 matches with a model's")
    return ", ".join(parts) or "nothing known of their classes, anchors or config"

"""Weights in files, with what is known of them beside: ``.safetensors`` and ``.pth`` alike.

In ``.safetensors`` that is in the texts of the header, structured ones as JSON:

- ``format``: "pt", which other programs ask for.
- ``d2_cityscapes``: the version that wrote the file; without it the others are not ours.
- ``label_table``: the class record, see `d2_cityscapes.labels.record`.
- ``anchors``: module -> {"sizes", "aspect_ratios"}, lists for each level, for people and other
  programs: read back are the records among the tensors, see `d2_cityscapes.modeling.anchors`.
- ``config``: the config of the training, as YAML.
- ``data``: data set -> SHA-256 of the index.json of its shards.
- ``matching_heuristics``: whose names these are, e.g. "Caffe2", where Detectron2 has to match them
  with those of the model.

Needs no Detectron2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from d2_cityscapes import __version__
from d2_cityscapes.labels.record import CLASSES
from d2_cityscapes.modeling.anchors.record import find_records, record_lists
from d2_cityscapes.tensor_files import (
    SAFETENSORS,
    TensorFileError,
    read_safetensors,
    read_tensor_file,
    read_texts,
    write_safetensors,
    write_tensor_file,
)

__all__ = [
    "HEURISTICS",
    "About",
    "about_content",
    "as_checkpoint",
    "read_about",
    "read_weights_file",
    "write_weights_file",
]

# Detectron2's keys beside "model"
HEURISTICS, _AUTHOR = "matching_heuristics", "__author__"
_OURS, _ANCHORS, _CONFIG, _DATA = "d2_cityscapes", "anchors", "config", "data"


@dataclass(frozen=True)
class About:
    """What a file tells of its weights; empty where it does not.

    Attributes:
        classes: the class record; None where there is none.
        config: YAML.
        data: data set -> SHA-256 of its index.json.
        heuristics: whose names are to be matched with those of the model, e.g. "Caffe2".
    """

    classes: Mapping[str, Any] | None = None
    config: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    heuristics: str = ""

    def beside(self) -> dict[str, Any]:
        """What stands beside "model" in a checkpoint."""
        found: dict[str, Any] = {CLASSES: dict(self.classes)} if self.classes else {}
        matched = {HEURISTICS: True, _AUTHOR: self.heuristics}
        return found | (matched if self.heuristics else {})


def read_weights_file(path: str | Path) -> Any:
    """The content of a file in the form of Detectron2's checkpoints, on the CPU.

    Returns:
        Of ``.safetensors`` of anybody's {"model": name -> tensor}, with what `About.beside` says of
        ours; of other formats what is in them.

    Raises:
        TensorFileError: damaged, or it holds more than may be read.
        OSError: it cannot be opened.
    """
    if Path(path).suffix != SAFETENSORS:
        return read_tensor_file(path)
    tensors, texts = read_safetensors(path)
    return {"model": tensors, **_about(path, texts).beside()}


def read_about(path: str | Path) -> About:
    """What a file tells of its weights, without reading them where it is ``.safetensors``.

    Other formats tell the classes alone.

    Raises:
        TensorFileError, OSError: as of `read_weights_file`.
    """
    if Path(path).suffix == SAFETENSORS:
        return _about(path, read_texts(path))
    content = read_tensor_file(path)
    content = content if isinstance(content, dict) else {}
    return about_content(as_checkpoint(content, Path(path).suffix))


def about_content(checkpoint: Mapping[str, Any]) -> About:
    """What a checkpoint of Detectron2's form tells of its weights."""
    classes = checkpoint.get(CLASSES)
    author = str(checkpoint.get(_AUTHOR) or "unknown") if checkpoint.get(HEURISTICS) else ""
    return About(classes if isinstance(classes, Mapping) else None, heuristics=author)


def as_checkpoint(content: dict[str, Any], suffix: str) -> dict[str, Any]:
    """Weights of any code base that Detectron2 reads, in the form of its own checkpoints.

    Args:
        content: of a file.
        suffix: of its name.
    """
    if suffix == ".pkl" and not {"model", _AUTHOR} <= content.keys():
        blobs = content.get("blobs", content)  # Caffe2's; of an ImageNet model it is the whole
        if isinstance(blobs, Mapping):
            blobs = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
        return {"model": blobs, _AUTHOR: "Caffe2", HEURISTICS: True}
    if suffix == ".pyth":
        weights = content.get("model_state", content)
        return {"model": weights, _AUTHOR: "pycls", HEURISTICS: True}
    return content if "model" in content else {"model": content}


def write_weights_file(
    path: str | Path, tensors: Mapping[str, Tensor], about: About | None = None
) -> None:
    """Write weights, whole or not at all, in the format that the name ends with.

    Args:
        path: ``.safetensors``, or any other for a file of PyTorch, which has the classes alone
            beside its weights.
        tensors: on any device; records of anchors among them.
        about: what is known of them.

    Raises:
        D2CityscapesError: the disk refused.
    """
    about = about or About()
    if Path(path).suffix == SAFETENSORS:
        write_safetensors(path, tensors, _texts(tensors, about))
    else:
        write_tensor_file(path, {"model": dict(tensors), **about.beside()})


def _texts(tensors: Mapping[str, Tensor], about: About) -> dict[str, str]:
    anchors = {}
    for name, record in find_records(tensors).items():
        if record.ndim == 2 and record.shape[1] == 3:
            sizes, ratios = record_lists(record.cpu())
            anchors[name.rpartition(".")[0]] = {"sizes": sizes, "aspect_ratios": ratios}
    texts = {"format": "pt", _OURS: __version__, _CONFIG: about.config}
    texts[HEURISTICS] = about.heuristics
    structured = {CLASSES: about.classes, _ANCHORS: anchors, _DATA: about.data}
    texts |= {key: json.dumps(value) for key, value in structured.items() if value}
    return {key: text for key, text in texts.items() if text}


def _about(path: str | Path, texts: Mapping[str, str]) -> About:
    if _OURS not in texts:  # of others, who mean something else by these names
        return About()
    found = {}
    for key in (CLASSES, _DATA):
        try:
            found[key] = json.loads(texts.get(key, "{}"))
        except (ValueError, RecursionError) as error:
            raise TensorFileError(f"{path}: its {key!r} is not JSON, so it is damaged") from error
        if not isinstance(found[key], dict):
            raise TensorFileError(f"{path}: its {key!r} is no JSON object, so it is damaged")
    data = {name: str(digest) for name, digest in found[_DATA].items()}
    config, heuristics = texts.get(_CONFIG, ""), texts.get(HEURISTICS, "")
    return About(found[CLASSES] or None, config, data, heuristics)

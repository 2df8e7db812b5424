"""Weights of anybody as ``.safetensors``: the same tensors, with what is known of them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn

from d2_cityscapes.convert import ConversionError, convert_file
from d2_cityscapes.convert.files import write_weights
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer
from d2_cityscapes.engine.checkpoints.weights_file import About, read_about, write_weights_file
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.record import class_record
from d2_cityscapes.modeling.anchors.record import make_record
from d2_cityscapes.tensor_files import read_tensor_file

CONFIG = "MODEL: {META_ARCHITECTURE: StagedRCNN}\n"


@pytest.fixture
def convert(tmp_path):
    """(name of the input, options) -> lines of the report, and what the new file tells."""

    def run(name: str, **options) -> tuple[str, About]:
        output = tmp_path / "new" / "out.safetensors"
        report = convert_file("to-safetensors", tmp_path / name, output, **options)
        return "\n".join(report), read_about(output)

    return run


def test_what_is_known_goes_with_the_weights(tmp_path, convert):
    weights = {
        "a": torch.randn(2, 3),
        "rpn.anchor_record": make_record([[4, 8]], [[0.5, 1]], 1),
    }
    write_weights(tmp_path / "model.pth", weights, class_record(CITYSCAPES))
    report, about = convert("model.pth")
    assert "2 tensors, with the classes of cityscapes, their anchors" in report
    assert about == About(class_record(CITYSCAPES))
    found = read_tensor_file(tmp_path / "new/out.safetensors")
    assert found.keys() == weights.keys() and all(found[k].equal(x) for k, x in weights.items())


def test_the_config_is_that_beside_it(tmp_path, convert):
    write_weights(tmp_path / "model.pth", {"a": torch.ones(1)})
    (tmp_path / "config.yaml").write_text(CONFIG)
    report, about = convert("model.pth", details=True)
    assert about.config == CONFIG and f"the config {tmp_path}/config.yaml" in report
    assert "matched a" in report
    (tmp_path / "config.yaml").write_text("_BASE_: other.yaml\n")  # of whatever else
    report, about = convert("model.pth")
    assert about.config == "" and "nothing known of their classes, anchors or config" in report
    with pytest.raises(ConversionError, match=r"config.yaml: not a whole config; take the config"):
        convert("model.pth", config_file=tmp_path / "config.yaml")
    with pytest.raises(ConversionError, match=r"none.yaml: missing"):
        convert("model.pth", config_file=tmp_path / "none.yaml")
    (tmp_path / "other.yaml").write_text(CONFIG)
    assert convert("model.pth", config_file=tmp_path / "other.yaml")[1].config == CONFIG


def test_safetensors_keep_what_they_tell(tmp_path, convert):
    about = About(class_record(CITYSCAPES), CONFIG, {"cityscapes_shards_train": "0" * 64})
    write_weights_file(tmp_path / "a.safetensors", {"a": torch.ones(1)}, about)
    assert convert("a.safetensors")[1] == about


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"stem": nn.ModuleDict({"conv1": Conv2d(3, 4, 3)})})


def test_names_that_detectron2_matches(tmp_path, convert):
    """Those of Caffe2, as in its zoo's backbones."""
    weights = {"conv1_w": np.ones((4, 3, 3, 3), np.float32), "conv1_b": np.zeros(4, np.float32)}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps({"blobs": weights | {"conv1_w_momentum": 1.0}}))
    report, about = convert("R.pkl")
    assert about.heuristics == "Caffe2" and "the names of Caffe2" in report
    models = Model(), Model()
    for model, path in zip(models, ("R.pkl", "new/out.safetensors"), strict=True):
        Checkpointer(model).resume_or_load(str(tmp_path / path), resume=False)
    assert all(bool((model.backbone["stem"]["conv1"].weight == 1).all()) for model in models)


def test_another_ending_is_refused(tmp_path):
    write_weights(tmp_path / "model.pth", {"a": torch.ones(1)})
    with pytest.raises(ConversionError, match=r"out.pth: name it .safetensors"):
        convert_file("to-safetensors", tmp_path / "model.pth", tmp_path / "out.pth")


def test_the_command_reads_an_old_file_of_ones_own(tmp_path, call):
    class Old:
        def __reduce__(self):
            return (tmp_path / "mark").touch, ()

    torch.save({"model": {"a": torch.ones(1)}, "args": Old()}, tmp_path / "old.pth")
    command = [
        "tools/convert_weights.py", "to-safetensors", "--input", tmp_path / "old.pth",
        "--output", tmp_path / "new.safetensors",
    ]  # fmt: skip
    code, _, errors = call(*command)
    assert code == 1 and "read with --allow-pickle, which runs what it holds" in errors
    assert not (tmp_path / "mark").exists() and not (tmp_path / "new.safetensors").exists()
    code, out, errors = call(*command, "--allow-pickle")
    assert code == 0 and "1 tensor, with nothing known" in out, errors
    assert (tmp_path / "mark").exists() and (tmp_path / "new.safetensors").exists()

"""Weights as ``.safetensors``: what a training writes, what they tell, and who reads them."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from d2_cityscapes import __version__
from d2_cityscapes.engine.checkpoints.address import file_of, for_detectron2
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer, CheckpointError
from d2_cityscapes.engine.checkpoints.saving import complete_final_weights
from d2_cityscapes.engine.checkpoints.weights_file import (
    About,
    read_about,
    read_weights_file,
    write_weights_file,
)
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.trainer import setup, train
from d2_cityscapes.files import file_sha256
from d2_cityscapes.labels import CITYSCAPES, IDD
from d2_cityscapes.labels.record import class_record
from d2_cityscapes.modeling.anchors.clustering import AnchorError
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.tensor_files import (
    TensorFileError,
    pickles_allowed,
    read_texts,
    write_safetensors,
)
from d2_cityscapes.yaml_text import load_yaml


@pytest.fixture(scope="module")
def trained(repository, datasets_root, tmp_path_factory) -> Path:
    """The folder of a training of a step, with k-means anchors and an average."""
    out = tmp_path_factory.mktemp("trained")
    args = argparse.Namespace(
        config_file=str(repository / "configs/quick/instance.yaml"),
        opts=[
            "SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", "0", "DATASETS.TEST", "()",
            "TEST.EXPECTED_RESULTS", "[]", "OUTPUT_DIR", str(out), "SOLVER.EMA_DECAY", "0.5",
            "MODEL.ANCHOR_GENERATOR.NAME", "KMeansAnchorGenerator",
        ],
        eval_only=False,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets_root))
        train(setup(args), allow_unused=True)
    return out


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return read_weights_file(path)["model"]


# --- what a training writes ---


@pytest.mark.parametrize("name", ["model_final", "model_final_ema"])
def test_final_weights_are_there_in_both_formats(trained, name):
    expected, found = _tensors(trained / f"{name}.pth"), _tensors(trained / f"{name}.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[k].equal(x) and found[k].dtype == x.dtype for k, x in expected.items())
    assert any(k.endswith("anchor_record") for k in found)
    assert not (trained / "model_0000000.safetensors").exists()


def test_the_header_tells_of_the_training(trained, datasets):
    texts = read_texts(trained / "model_final.safetensors")
    assert texts["format"] == "pt" and texts["d2_cityscapes"] == __version__
    assert json.loads(texts["label_table"]) == class_record(CITYSCAPES)
    assert load_yaml(texts["config"]) == load_yaml((trained / "config.yaml").read_text())
    index = datasets / "cityscapes_shards/index.json"
    assert json.loads(texts["data"]) == {"cityscapes_shards_train": file_sha256(index)}
    anchors = json.loads(texts["anchors"])["proposal_generator.anchor_generator"]
    generator = load_config(trained / "config.yaml").MODEL.ANCHOR_GENERATOR
    assert anchors["sizes"] == [[float(x) for x in sizes] for sizes in generator.SIZES]
    assert anchors["aspect_ratios"][0] == [float(x) for x in generator.ASPECT_RATIOS[0]]


def test_a_lost_one_is_written_when_its_run_is_resumed(tmp_path):
    model = nn.Linear(2, 2)
    checkpointer = Checkpointer(model, str(tmp_path), table=IDD, about=About(config="A: 1\n"))
    trainer = argparse.Namespace(
        checkpointer=checkpointer,
        cfg=argparse.Namespace(OUTPUT_DIR=str(tmp_path)), start_iter=0, max_iter=3, iter=2,
    )  # fmt: skip
    complete_final_weights(trainer)
    assert not [*tmp_path.iterdir()]  # it goes on
    trainer.start_iter = 3
    for lost in ("model_final.pth", "model_final.safetensors"):
        (tmp_path / lost).unlink(missing_ok=True)
        complete_final_weights(trainer)
        assert read_about(tmp_path / "model_final.safetensors").config == "A: 1\n"
        for name in ("model_final.pth", "model_final.safetensors"):
            assert _tensors(tmp_path / name)["weight"].equal(model.weight)


# --- who reads it ---


def _model(trained: Path, *opts: str) -> nn.Module:
    return build_model(load_config(trained / "config.yaml", ["MODEL.DEVICE", "cpu", *opts]))


def test_it_is_used_as_a_pth_is(trained, log):
    path = trained / "model_final.safetensors"
    model = _model(trained)
    Checkpointer(model, table=CITYSCAPES).load(str(path))
    assert "loaded" in log.text and "WARNING" not in log.text
    state = model.state_dict()
    assert all(state[k].equal(x) for k, x in _tensors(trained / "model_final.pth").items())
    with pytest.raises(CheckpointError, match="trained for the things of cityscapes"):
        Checkpointer(model, table=IDD).load(str(path))
    other = _model(trained, "MODEL.ANCHOR_GENERATOR.SIZES", "[[5],[9],[17],[33],[65]]")
    with pytest.raises(AnchorError, match="trained with anchors of SIZES"):
        Checkpointer(other, table=CITYSCAPES).load(str(path))
    with pytest.raises(CheckpointError, match="cannot be resumed from, as it has weights but no"):
        (trained / "resumed").mkdir()
        (trained / "resumed" / path.name).write_bytes(path.read_bytes())
        (trained / "resumed/last_checkpoint").write_text(path.name)
        Checkpointer(model, str(trained / "resumed"), trainer=_State()).resume_or_load("")


class _State:
    def state_dict(self):
        return {}


def test_stock_detectron2_reads_it_by_an_address(trained):
    """Its `DefaultPredictor` and `DetectionCheckpointer`, as they are."""
    cfg = load_config(trained / "config.yaml", ["MODEL.DEVICE", "cpu"])
    image = np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    found = []
    for path in ("model_final.pth", "model_final.safetensors"):
        cfg = cfg.clone()
        cfg.defrost()
        scheme = "safetensors://" if path.endswith(".safetensors") else ""
        cfg.MODEL.WEIGHTS = f"{scheme}{trained / path}"
        found.append(DefaultPredictor(cfg)(image)["instances"])
    assert found[0].scores.equal(found[1].scores)
    assert found[0].pred_boxes.tensor.equal(found[1].pred_boxes.tensor)


def test_the_address_is_for_safetensors_alone():
    assert for_detectron2("a/b.safetensors") == "safetensors://a/b.safetensors"
    for other in ("a.pth", "detectron2://a.pkl", ""):
        assert for_detectron2(other) == other
    assert file_of("safetensors:///a") == file_of("safetensors:/a") == "/a"


def test_the_address_of_a_relative_path(tmp_path, monkeypatch):
    source, model = nn.Linear(2, 2), nn.Linear(2, 2)
    write_weights_file(tmp_path / "a.safetensors", source.state_dict())
    monkeypatch.chdir(tmp_path)
    for checkpointer in (DetectionCheckpointer, Checkpointer):
        nn.init.zeros_(model.weight)
        checkpointer(model).load("safetensors://a.safetensors")
        assert model.weight.equal(source.weight)
    with pytest.raises(CheckpointError, match=r"safetensors://b\.safetensors: cannot be fet"):
        Checkpointer(model).load("safetensors://b.safetensors")


def test_bare_tensors_of_others(tmp_path, log):
    """With texts that mean something else by our names."""
    source, model = nn.Linear(2, 2), nn.Linear(2, 2)
    path = tmp_path / "bare.safetensors"
    save_file(source.state_dict(), path, {"format": "pt", "label_table": "[", "config": "x"})
    Checkpointer(model, table=CITYSCAPES).load(str(path))
    assert model.weight.equal(source.weight) and "loaded 2 of 2 tensors" in log.text
    assert read_about(path) == About()


# --- the file itself ---


def test_what_is_written_is_read(tmp_path):
    about = About(class_record(IDD), "A: 1\n", {"x": "0"}, "Caffe2")
    tensors = {"a": torch.ones(2), "rpn.anchor_record": torch.zeros(0)}  # of nobody's generator
    write_weights_file(tmp_path / "a.safetensors", tensors, about)
    assert read_about(tmp_path / "a.safetensors") == about
    write_weights_file(tmp_path / "a.pth", tensors, about)
    assert read_about(tmp_path / "a.pth") == About(about.classes, heuristics="Caffe2")
    one, two = (read_weights_file(tmp_path / f"a.{kind}") for kind in ("safetensors", "pth"))
    assert one.keys() == two.keys() and one["label_table"] == two["label_table"]


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[1]", '"a"'])
def test_damaged_texts_are_one_line(tmp_path, text):
    path = tmp_path / "a.safetensors"
    texts = {"d2_cityscapes": "1", "label_table": text}
    write_safetensors(path, {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, texts)
    with pytest.raises(TensorFileError, match=r"a.safetensors: its 'label_table' is no"):
        read_about(path)
    with pytest.raises(CheckpointError, match="'label_table'"):
        Checkpointer(nn.Linear(2, 2)).load(str(path))


# --- pickles that are allowed ---


class Old:
    """Something beside the weights, as old trainings kept it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("command", ["train_net", "predict"])
def test_an_old_checkpoint_of_ones_own(trained, datasets, tmp_path, call, caplog, command):
    path, mark, out = tmp_path / "old.pth", tmp_path / "mark", tmp_path / "out"
    torch.save({"model": _tensors(trained / "model_final.pth"), "args": Old(mark)}, path)
    picture = tmp_path / "street.png"
    Image.new("RGB", (128, 64)).save(picture)
    own = {
        "train_net": ["--eval-only", "--allow-unused"],
        "predict": ["--input", picture, "--output", out],
    }[command]
    tested = "('cityscapes_shards_val_1',)"
    opts = ["MODEL.WEIGHTS", path, "OUTPUT_DIR", out, "DATASETS.TEST", tested]
    command = [f"tools/{command}.py", "--config-file", trained / "config.yaml", *own]
    code, _, errors = call(*command, *opts)
    line = errors.strip().splitlines()[-1]
    assert code == 1 and not mark.exists()
    assert line.startswith("error: ") and "is read with --allow-pickle, which runs" in line
    code, printed, errors = call(*command, "--allow-pickle", *opts)
    assert code == 0 and mark.exists(), errors
    said = printed + errors + caplog.text
    assert "unpickled as --allow-pickle asks: code in it runs now" in said


def test_pickles_are_allowed_for_a_while(tmp_path):
    path, mark = tmp_path / "old.pkl", tmp_path / "mark"
    path.write_bytes(pickle.dumps({"model": {"a": np.ones(2)}, "args": Old(mark)}))
    with pickles_allowed(False), pytest.raises(TensorFileError, match="--allow-pickle"):
        read_weights_file(path)
    assert not mark.exists()
    with pickles_allowed():
        assert read_weights_file(path)["model"]["a"].tolist() == [1, 1]
    assert mark.exists()
    with pytest.raises(TensorFileError, match="--allow-pickle"):
        read_weights_file(path)
    path.write_bytes(b"no pickle")
    with pickles_allowed(), pytest.raises(TensorFileError, match="cannot be unpickled"):
        read_weights_file(path)

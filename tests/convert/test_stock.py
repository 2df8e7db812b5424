"""Our models in stock Detectron2: equal predictions without this package; what cannot go there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_stock_cfg
from detectron2.engine import DefaultPredictor

from d2_cityscapes.convert import ConversionError, convert_file
from d2_cityscapes.convert.stock import stock_config
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.modeling.anchors.clustering import (
    AnchorQuality,
    Anchors,
    AnchorSet,
    write_anchors,
)
from d2_cityscapes.modeling.build import build_model

# name -> config, overrides
MODELS = {
    "instance": ("demo/stage2.yaml", []),
    "panoptic": ("demo/stage4.yaml", ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"]),
    "semantic": ("quick/semantic.yaml", []),
}
SMALL = [
    "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 128,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.01,
]  # fmt: skip
ANCHORS = [[5.1], [11.3], [20.7], [44.9], [101.123456789]]


def anchor_file(folder: Path) -> Path:
    path = folder / "anchors.json"
    quality = {"kmeans": AnchorQuality(0.8, 0.9, 0.7)}
    anchors = Anchors(tuple(size for (size,) in ANCHORS), ((0.4, 1.1, 2.3),))
    resize = {"min_size": [256], "max_size": 512, "sampling": "choice"}
    write_anchors(path, AnchorSet(anchors, ("some",), resize, 9, 0, "separate", quality))
    return path


def save_run(cfg: CfgNode, folder: Path) -> Path:
    """What a training leaves, of a model whose weights and statistics are all random."""
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, tensor in model.state_dict().items():
        if name.endswith("norm.weight") or name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("bias") or name.endswith("running_mean"):
            tensor.uniform_(-0.2, 0.2)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict(), "iteration": 3}, folder / "model_final.pth")
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def runs(repository, tmp_path_factory) -> dict[str, Path]:
    """Name -> checkpoint beside its config.yaml."""
    folder = tmp_path_factory.mktemp("runs")
    opts = [*SMALL, "MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE", str(anchor_file(folder))]
    return {
        name: save_run(
            load_config(repository / "configs" / config, [*opts, *own], train=False), folder / name
        )
        for name, (config, own) in MODELS.items()
    }


@pytest.fixture(scope="module")
def reports(runs) -> dict[str, str]:
    """Name -> report of the conversion into the folder "stock" beside the checkpoint."""
    return {
        name: "\n".join(convert_file("to-detectron2", path, path.parent / "stock"))
        for name, path in runs.items()
    }


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """BGR, and of another size than the network's input."""
    return np.random.default_rng(0).integers(0, 256, (100, 180, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def stock(runs, reports, image, tmp_path_factory) -> dict[str, dict]:
    """Name -> predictions and class names of a process that knows stock Detectron2 only."""
    folder = tmp_path_factory.mktemp("stock")
    np.save(folder / "image.npy", image)
    folders = {name: path.parent / "stock" for name, path in runs.items()}
    script = Path(__file__).with_name("stock_predictions.py")
    arguments = [folder / "image.npy", *folders.values()]
    done = subprocess.run(
        [sys.executable, "-P", str(script), *map(str, arguments)],
        cwd=folder,  # paths of the config do not depend on it
        env={**os.environ, "PYTHONPATH": _without_this_package()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        name: torch.load(path / "predictions.pth", weights_only=True)
        for name, path in folders.items()
    }


def _without_this_package() -> str:
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(p for p in paths if p and not (Path(p) / "d2_cityscapes").is_dir())


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("instance", {"instances"}),
        ("panoptic", {"instances", "sem_seg", "panoptic_seg"}),
        ("semantic", {"sem_seg"}),
    ],
)
def test_predictions_are_bit_identical(stock, runs, image, name, outputs):
    """In Detectron2's own predictor, where the config computes as stock does."""
    opts = ["MODEL.WEIGHTS", str(runs[name]), "SOLVER.CHANNELS_LAST", "False"]
    cfg = load_config(runs[name].parent / "config.yaml", opts)
    ours, theirs = DefaultPredictor(cfg)(image), stock[name]["predictions"]
    assert ours.keys() == theirs.keys() == outputs
    if "instances" in outputs:
        found = ours["instances"].get_fields()
        assert len(found["scores"]) > 0
        assert found.keys() == theirs["instances"].keys()
        found["pred_boxes"] = found["pred_boxes"].tensor
        for field, value in found.items():
            assert torch.equal(value, theirs["instances"][field]), field
        assert found["pred_masks"].any()
    if "sem_seg" in outputs:
        assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
        assert len(ours["sem_seg"].argmax(dim=0).unique()) > 1


def test_the_demo_finds_our_class_names(stock):
    for found in stock.values():
        assert found["things"] == [c.name for c in CITYSCAPES.things]
        assert found["classes"] == [c.name for c in CITYSCAPES.classes]


def test_the_config_is_short_and_stock(reports, runs):
    folder = runs["instance"].parent / "stock"
    assert {p.name for p in folder.iterdir()} >= {"config.yaml", "model.pth"}
    text = (folder / "config.yaml").read_text()
    for word in (
        "GIoU",
        "GIOU",
        "KMEANS",
        "FREEZE:",
        "SOLVER",
        "WEIGHTS_EXCLUDE",
        "CASCADE",
        "shards",
    ):
        assert word not in text
    cfg = get_stock_cfg()
    cfg.merge_from_file(str(folder / "config.yaml"))
    assert ANCHORS == cfg.MODEL.ANCHOR_GENERATOR.SIZES
    assert cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS == [[0.4, 1.1, 2.3]]
    assert Path(cfg.MODEL.WEIGHTS) == (folder / "model.pth").resolve()
    assert cfg.DATASETS.TRAIN == ()


def test_the_weights_hold_what_the_stock_model_has(reports, runs):
    before = torch.load(runs["instance"], weights_only=True)["model"]
    after = torch.load(runs["instance"].parent / "stock" / "model.pth", weights_only=True)
    assert after.keys() == {"model"}
    left = before.keys() - after["model"].keys()
    assert all("anchor_generator" in name for name in left)
    assert all(torch.equal(before[name], tensor) for name, tensor in after["model"].items())


def test_reports(reports):
    assert "--config-file" in reports["instance"]
    assert "panoptic_seg" in reports["panoptic"]
    assert "panoptic_seg" not in reports["instance"]


def test_class_names_are_left_out_where_they_would_be_wrong(repository):
    config = repository / "configs" / "demo" / "stage1.yaml"
    cfg = load_config(config, [*SMALL, "MODEL.ROI_HEADS.NUM_CLASSES", 3])
    assert stock_config(cfg).DATASETS.TEST == ()
    assert len(stock_config(load_config(config, SMALL)).DATASETS.TEST) == 1


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.META_ARCHITECTURE", "DeepLabV3Segmentor"], "META_ARCHITECTURE DeepLabV3Segmentor"),
        (["MODEL.ROI_MASK_HEAD.NAME", "MLPMaskHead"], "ROI_MASK_HEAD.NAME MLPMaskHead"),
        (["INPUT.FIXED_SIZE", [64, 128]], r"INPUT.FIXED_SIZE \[64, 128\]"),
    ],
)
def test_what_stock_detectron2_lacks_is_refused(repository, opts, message):
    cfg = load_config(repository / "configs" / "demo" / "stage1.yaml", [*SMALL, *opts])
    with pytest.raises(ConversionError, match=f"{message} has no equivalent in stock") as error:
        stock_config(cfg)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("roi_heads.box_predictor.cls_score.bias"), "missing: roi_heads.box_pred"),
        (lambda w: w.update(surprise=torch.zeros(1)), "unknown: surprise"),
        (
            lambda w: w.update({"roi_heads.box_predictor.cls_score.bias": torch.zeros(81)}),
            r"another shape: .*bias is \(81,\), not \(9,\)",
        ),
    ],
)
def test_weights_of_another_model_are_refused(runs, tmp_path, change, message):
    content = torch.load(runs["instance"], weights_only=True)
    change(content["model"])
    torch.save(content, tmp_path / "other.pth")
    config = runs["instance"].parent / "config.yaml"
    with pytest.raises(ConversionError, match=message) as error:
        convert_file("to-detectron2", tmp_path / "other.pth", tmp_path / "o", config_file=config)
    assert str(config) in str(error.value)
    assert not (tmp_path / "o").exists()


def test_a_config_with_other_anchors_is_refused(runs, tmp_path):
    config = tmp_path / "config.yaml"
    text = (runs["instance"].parent / "config.yaml").read_text()
    cfg = CfgNode.load_cfg(text)
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = ""
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    config.write_text(cfg.dump())
    with pytest.raises(D2CityscapesError, match="trained with anchors of"):
        convert_file("to-detectron2", runs["instance"], tmp_path / "o", config_file=config)
    assert not (tmp_path / "o").exists()


def test_paths_that_cannot_be(runs, tmp_path):
    source = runs["semantic"]
    with pytest.raises(D2CityscapesError, match="would be overwritten"):
        convert_file("to-detectron2", source, source.parent)
    (tmp_path / "sub").mkdir()  # a config that begins with what would be written
    base, sub = tmp_path / "sub" / "config.yaml", tmp_path / "sub" / "mine.yaml"
    base.write_bytes((source.parent / "config.yaml").read_bytes())
    sub.write_text("_BASE_: config.yaml\n")
    with pytest.raises(D2CityscapesError, match=r"config\.yaml: is read here too"):
        convert_file("to-detectron2", source, tmp_path / "sub", config_file=sub)
    shutil.rmtree(tmp_path / "sub")
    (tmp_path / "file").touch()
    with pytest.raises(ConversionError, match="is a file; the output is a folder"):
        convert_file("to-detectron2", source, tmp_path / "file")
    alone = tmp_path / "model_final.pth"
    alone.write_bytes(source.read_bytes())
    with pytest.raises(ConversionError, match="name the config in --config-file"):
        convert_file("to-detectron2", alone, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "model_final.pth"}

"""Exported files, and what runs them: without torch, and without leaving their folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.export import run
from d2_cityscapes.export.describe import describe
from d2_cityscapes.export.folder import export_model
from d2_cityscapes.export.graph.pixels import Pixels
from d2_cityscapes.export.graph.semantics import SemanticGraph
from d2_cityscapes.export.kinds import GRAPHS
from d2_cityscapes.export.write import exporter_of, trace, write_graph
from d2_cityscapes.labels import CITYSCAPES

# what a process without them would say, whatever is installed
WITHOUT_TORCH = """
import sys
BLOCKED = "torch", "torchvision", "detectron2", "d2_cityscapes", "onnx"
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
"""


def in_another_process(folder: Path, code: str) -> str:
    """What it prints, run in the folder, which is no place of this package."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def small_export(folder: Path, repository: Path) -> SemanticGraph:
    """A folder of a network of one convolution."""
    torch.manual_seed(0)
    mean, std = torch.tensor([120.0, 110, 100]), torch.tensor([50.0, 60, 70])
    pixels = Pixels(mean, std, bgr=False, multiple=8, sizes=None)
    graph = SemanticGraph(pixels, nn.Conv2d(3, 19, 3, padding=1)).eval().requires_grad_(False)
    cfg = load_config(
        repository / "configs/quick/semantic.yaml", ["MODEL.DEVICE", "cpu"], train=False
    )
    folder.mkdir()
    assert write_graph(trace(graph), "onnx", folder, graph.outputs) == ["model.onnx"]
    beside = {"outputs": graph.outputs, "fixed": None, "multiple": 8, **exporter_of("onnx")}
    about = describe(cfg, CITYSCAPES, "onnx", weights_sha256="", graph=beside)
    (folder / "model.json").write_text(json.dumps(about))
    shutil.copyfile(run.__file__, folder / "run.py")
    return graph


def test_run_py_needs_no_torch(tmp_path, repository, street):
    folder = tmp_path / "exported"
    graph = small_export(folder, repository)
    content = (folder / "model.onnx").read_bytes()
    assert str(repository).encode() not in content  # nor where its code lies
    for height, width in ((64, 128), (50, 111)):
        Image.fromarray(street(height, width)).save(folder / "street.png")
        printed = in_another_process(
            folder,
            "import numpy as np; from PIL import Image; import run\n"
            "found = run.load('.')(np.array(Image.open('street.png')))\n"
            "np.save('labels.npy', found['sem_seg'])\n"
            "run.main(['street.png', '--output', 'seen.png'])\n"
            "print(sorted(m for m in sys.modules if m.startswith(('torch', 'detectron2'))))\n",
        )
        assert printed.splitlines() == ["wrote seen.png", "[]"]
        h, w = run.network_size(
            {"network": None, "short_edge": 64, "longest_edge": 128}, height, width
        )
        resized = run._resized(street(height, width), (h, w), "torch")
        padded = np.pad(resized, ((0, -h % 8), (0, -w % 8), (0, 0)), constant_values=9)
        size = torch.tensor([h, w, height, width])
        (wanted,) = graph(torch.from_numpy(padded), size)
        labels = np.load(folder / "labels.npy")
        assert labels.dtype == np.uint8 and labels.shape == (height, width)
        assert (labels == wanted.numpy()).mean() > 0.999 and len(np.unique(labels)) > 2
        with Image.open(folder / "seen.png") as seen:
            assert seen.size == (width, height)


def hostile_model(folder: Path, location: str) -> None:
    """A model that adds four numbers of another file to its input."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_weights_outside_of_the_folder_are_refused(tmp_path):
    folder, secret = tmp_path / "exported", tmp_path / "secret.bin"
    folder.mkdir()
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(secret)
    shutil.copyfile(secret, folder / "own.bin")
    (folder / "model.json").write_text(json.dumps({"format": "onnx"}))
    hostile_model(folder, "own.bin")
    run.load(folder)  # so that the others are refused for where they lead
    for location in ("../secret.bin", str(secret), "link.bin", "a/../../secret.bin"):
        hostile_model(folder, location)
        with pytest.raises(Exception, match=r"escapes model directory|Absolute path not allowed"):
            run.load(folder)


FAMILIES = {
    "semantic": ("quick/semantic.yaml", []),
    "instances": ("quick/instance.yaml", []),
    "panoptic": ("quick/panoptic.yaml", ["TEST.SEM_SEG_SCORES", False]),
    "deeplab": ("quick/deeplab.yaml", ["INPUT.FIXED_SIZE", "[48, 96]"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_exports_of_any_size_equal_the_model(family, kind, make_run, street, tmp_path):
    config, opts = FAMILIES[family]
    paths = []
    for height, width in ((64, 128), (150, 211), (50, 70)):
        paths.append(tmp_path / f"{height}.png")
        Image.fromarray(street(height, width)).save(paths[-1])
    output = tmp_path / "exported"
    lines = export_model(make_run(config, *opts), output, kind, pictures=paths)
    assert "compared on 3 pictures" in lines and lines[-1] == f"wrote {output}"
    about = json.loads((output / "model.json").read_text())
    assert about["comparison"]["pictures"] == 3 and about["format"] == kind
    if kind == "onnx":
        assert {o.version for o in onnx.load(output / "model.onnx").opset_import} == {20}
        assert onnxruntime.InferenceSession(output / "model.onnx").get_inputs()[0].name == "image"


@pytest.mark.slow
def test_an_export_of_one_size(make_run, datasets, tmp_path):
    folder = make_run("quick/panoptic.yaml", "DATASETS.TEST", "('cityscapes_shards_val',)")
    lines = export_model(folder, tmp_path / "exported", "onnx", size=(64, 128), check=4)
    assert any("panoptic_seg PQ" in line for line in lines)
    with pytest.raises(ValueError, match="of \\[64, 128\\]"):
        run.load(tmp_path / "exported")(np.zeros((64, 129, 3), dtype=np.uint8))
    assert "# SeamlessPanoptic for cityscapes" in (tmp_path / "exported/README.md").read_text()

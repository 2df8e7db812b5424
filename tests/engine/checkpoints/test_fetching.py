"""Weights by address: from a server of the test, checked by the digits in their name."""

from __future__ import annotations

import functools
import http.server
import threading

import pytest
import torch
from torch import nn

from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer, CheckpointError
from d2_cityscapes.engine.checkpoints.fetching import fetch_weights
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.files import file_sha256


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(folder, its address), with a cache of the test's own for what is fetched."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def put(folder, model: nn.Module, *, name: str = "") -> str:
    """A file of weights, with its checksum in its name as torchvision's."""
    torch.save(model.state_dict(), folder / "x.pth")
    name = name or f"net-{file_sha256(folder / 'x.pth')[:8]}.pth"
    (folder / "x.pth").rename(folder / name)
    return name


def test_what_is_fetched_is_loaded(served):
    folder, address = served
    source, model = nn.Linear(3, 3), nn.Linear(3, 3)
    name = put(folder, source)
    Checkpointer(model).load(f"{address}/{name}")
    assert model.weight.equal(source.weight)
    (folder / name).unlink()
    Checkpointer(model).load(f"{address}/{name}")  # it is kept


def test_another_content_than_the_name_says_is_thrown_away(served):
    folder, address = served
    source, model = nn.Linear(3, 3), nn.Linear(3, 3)
    before = model.weight.detach().clone()
    name = put(folder, source)
    right = (folder / name).read_bytes()
    put(folder, nn.Linear(3, 3), name=name)
    with pytest.raises(CheckpointError) as caught:
        Checkpointer(model).load(f"{address}/{name}")
    message = str(caught.value)
    assert message.startswith(f"{address}/{name}: damaged on its way") and "\n" not in message
    assert name[4:12] in message and "MODEL.WEIGHTS" in message
    assert model.weight.equal(before)
    (folder / name).write_bytes(right)
    Checkpointer(model).load(f"{address}/{name}")
    assert model.weight.equal(source.weight)


def test_addresses_of_files(tmp_path):
    name = put(tmp_path, nn.Linear(3, 3))
    assert fetch_weights(f"file://{tmp_path}/{name}") == f"{tmp_path}/{name}"
    put(tmp_path, nn.Linear(3, 3), name=name)
    with pytest.raises(CheckpointError, match="damaged on its way"):
        fetch_weights(f"file://{tmp_path}/{name}")
    assert (tmp_path / name).is_file()  # it is no copy of ours
    assert fetch_weights(str(tmp_path / name)) == str(tmp_path / name)  # nor a download


@pytest.mark.parametrize("name", ["none.pth", "none-12345678.pth"])
def test_without_network_the_way_out_is_named(served, name):
    _, address = served
    for missing in (f"{address}/{name}", f"http://127.0.0.1:9/{name}", f"file:///nowhere/{name}"):
        with pytest.raises(CheckpointError) as caught:
            fetch_weights(missing)
        message = str(caught.value)
        assert message.startswith(f"{missing}: cannot be fetched (") and "\n" not in message
        assert "download it elsewhere and give the file by MODEL.WEIGHTS" in message


def test_stage_0_begins_with_torchvisions_weights(repository):
    """The paper's; deeplabv3_resnet50_coco is the model of this checksum in torchvision."""
    import torchvision

    weights = torchvision.models.segmentation.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
    for config in ("stage0.yaml", "stage0_lr1e-4.yaml", "full_resolution/stage0.yaml",
                   "baselines/staged_as_run/stage0.yaml",
                   "semantic/deeplabv3_R_50_768x1024.yaml"):  # fmt: skip
        cfg = load_config(repository / "configs" / config, train=False)
        assert weights.url == cfg.MODEL.WEIGHTS

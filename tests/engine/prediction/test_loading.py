"""A model in one line, from what a training left."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

import d2_cityscapes
import d2c
from d2_cityscapes.engine.checkpoints.weights_file import About, write_weights_file
from d2_cityscapes.engine.prediction import load
from d2_cityscapes.engine.prediction.loading import model_config
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.errors import D2CityscapesError


@pytest.fixture
def folder(cfg, tmp_path):
    """What a training leaves of the semantic model."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(cfg.MODEL.WEIGHTS, folder / "model_final.pth")
    cfg.MODEL.WEIGHTS = "what/the/run/began/with.pth"
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def test_a_folder_its_weights_or_both_files(folder, scene) -> None:
    expected = load(folder)(scene)["sem_seg"]
    config, weights = folder / "config.yaml", folder / "model_final.pth"
    assert load((str(config), weights))(scene)["sem_seg"].equal(expected)
    smaller = load(weights, opts=["INPUT.MIN_SIZE_TEST", "32"])(scene)["sem_seg"]
    assert smaller.shape == expected.shape and not smaller.equal(expected)
    assert d2_cityscapes.load is load


def test_other_weights_of_a_folder_by_an_override(folder) -> None:
    other = shutil.copy(folder / "model_final.pth", folder / "model_0000001.pth")
    chosen = model_config(folder, ["MODEL.WEIGHTS", str(other)]).MODEL.WEIGHTS
    assert chosen == str(other)


def test_safetensors_bring_their_config_along(folder, cfg, scene, tmp_path) -> None:
    """Alone in a folder; beside a config.yaml, in the folder of a training, it is the same."""
    expected = load(folder)(scene)["sem_seg"]
    tensors = torch.load(folder / "model_final.pth")["model"]
    alone = tmp_path / "alone.safetensors"
    write_weights_file(alone, tensors, About(config=cfg.dump()))
    assert load(alone)(scene)["sem_seg"].equal(expected)
    bare = tmp_path / "bare.safetensors"
    write_weights_file(bare, tensors)
    with pytest.raises(ConfigError, match=r"bare\.safetensors: says nothing of its config"):
        load(bare)
    bare.rename(folder / "model_final.safetensors")
    assert model_config(folder).MODEL.WEIGHTS.endswith("run/model_final.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("MODEL: [1, 2]", r"odd\.safetensors: its config: "),
        ("_BASE_: /etc/passwd", r"odd\.safetensors: its config: names another file"),
        ("MODEL: !!python/object/apply:os.system ['true']", r"odd\.safetensors: its config: "),
        ("- a", r"odd\.safetensors: its config: "),
    ],
)
def test_a_config_of_others_reads_no_file_and_runs_nothing(tmp_path, config, message) -> None:
    write_weights_file(tmp_path / "odd.safetensors", {"a": torch.zeros(1)}, About(config=config))
    with pytest.raises(D2CityscapesError, match=message) as caught:
        load(tmp_path / "odd.safetensors")
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_one_line(folder, tmp_path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such model"):
        load(tmp_path / "nowhere")
    (folder / "model_final.pth").rename(tmp_path / "alone.pth")
    with pytest.raises(ConfigError, match=r"has no .*model_final\.pth.*training has not ended"):
        load(folder)
    with pytest.raises(ConfigError, match=r"alone\.pth: there is no .*config\.yaml beside"):
        load(tmp_path / "alone.pth")
    with pytest.raises(ConfigError, match=r"missing\.pth: no such file"):
        load((folder / "config.yaml", "missing.pth"))


def test_the_name_of_the_command_loads_too_and_stays_light(repository) -> None:
    """``import d2c`` alone brings neither torch nor the package."""
    assert d2c.load is load
    assert not hasattr(d2c, "nonsense")
    code = "import sys, d2c; assert not {'torch', 'd2_cityscapes'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)

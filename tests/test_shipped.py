"""Configs that come with the package are found by their names, from anywhere."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from d2_cityscapes.engine.setup import ConfigError, load_config
from d2_cityscapes.engine.start import setup
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.space.plan_file import read_plan
from d2_cityscapes.shipped import CONFIGS, find_config


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["stage3.yaml", "configs/stage3.yaml", "quick/deeplab.yaml"])
def test_by_name(elsewhere, name):
    assert find_config(name) == CONFIGS / name.removeprefix("configs/")


def test_a_file_that_is_there_comes_first(elsewhere):
    (elsewhere / "stage3.yaml").write_text("SEED: 5\n")
    assert load_config("stage3.yaml", ["MODEL.DEVICE", "cpu"], train=False).SEED == 5


@pytest.mark.parametrize("path", ["nowhere.yaml", "../setup.py", "/nowhere/stage3.yaml"])
def test_what_is_nowhere_stays_as_it_is(elsewhere, path):
    assert find_config(path) == Path(path)


def test_a_mistyped_name_gets_the_nearest(elsewhere):
    with pytest.raises(ConfigError, match=r"stge3.yaml: no such config file; nearest: stage3.yaml"):
        load_config("stge3.yaml")
    with pytest.raises(SearchError, match=r"no such search file; nearest: search/stage2.yaml"):
        read_plan(Path("search/stge2.yaml"), [], seed=0)


def test_a_training_is_set_up_by_name(elsewhere, datasets, tiny_opts):
    opts = [*tiny_opts, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", "run"]
    setup(argparse.Namespace(config_file="quick/instance.yaml", opts=opts, eval_only=False))
    assert (elsewhere / "run/config.yaml").is_file()


@pytest.mark.slow
def test_a_wheel_has_them_and_runs_outside_of_the_checkout(repository, elsewhere):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "-w", str(elsewhere), str(repository)],
        check=True,
    )  # fmt: skip
    with zipfile.ZipFile(next(elsewhere.glob("*.whl"))) as wheel:
        wheel.extractall(elsewhere / "site")
    shipped = elsewhere / "site/d2_cityscapes/shipped/configs"
    names = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    assert {str(path.relative_to(shipped)) for path in shipped.rglob("*.yaml")} == names
    run = subprocess.run(
        [sys.executable, "-m", "d2c", "train", "--config-file", "quick/instance.yaml", "--dry-run"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(elsewhere / "site"),
                                             "DETECTRON2_DATASETS": str(elsewhere)},
    )  # fmt: skip
    assert run.returncode == 1  # there is no dataset: but the package, and the config, were found
    assert run.stderr.splitlines()[-1].startswith("error: ")
    assert str(elsewhere / "cityscapes_shards") in run.stderr

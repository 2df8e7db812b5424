"""Without Detectron2: one line, and the plain rooms still work. Without cityscapesscripts: all."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

_WITHOUT = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == '{package}':
            raise {error}
sys.meta_path.insert(0, Hide())
"""
_HIDE = (
    _WITHOUT.format(package="detectron2", error='ModuleNotFoundError(f"No {name!r}", name=name)')
    + """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda n, p=None: None if n.startswith('detectron2') else found(n, p)
"""
)
# On new versions of what it stands on it may raise anything.
_BROKEN_SCRIPTS = _WITHOUT.format(package="cityscapesscripts", error="AttributeError('np.in1d')")
_ROAD = """
import argparse, importlib, pkgutil
import d2_cityscapes
from d2_cityscapes.engine.start import setup
from d2_cityscapes.engine.trainer import train
for module in pkgutil.walk_packages(d2_cityscapes.__path__, 'd2_cityscapes.'):
    if not module.name.endswith('__main__'):
        importlib.import_module(module.name)
from d2_cityscapes.shards.writer import write_shards
from d2_cityscapes.sources.cityscapes import find_sources
from d2_cityscapes.synthetic.dataset import make_tree
make_tree('scenes', train=2, val=2, height=64, width=128, seed=1)
for split in ('train', 'val'):
    write_shards(find_sources('scenes', split), 'cityscapes_shards', split=split)
arguments = dict(config_file='quick/panoptic.yaml', opts=sys.argv[1:], eval_only=False)
train(setup(argparse.Namespace(**arguments)))
"""


def _python(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-c", _HIDE + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_training_and_evaluation_need_no_cityscapesscripts(tmp_path, tiny_opts, repository):
    opts = [*tiny_opts, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", "run"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BROKEN_SCRIPTS + _ROAD, *opts],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env=os.environ | {"DETECTRON2_DATASETS": str(tmp_path), "PYTHONPATH": str(repository)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    tasks = {"bbox", "segm", "segm_cityscapes", "sem_seg", "panoptic_seg"}
    assert {row["task"] for row in rows} == tasks


def test_import_gives_one_line_with_the_command():
    done = _python("import d2_cityscapes")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "d2c install-detectron2" in done.stderr


def test_plain_rooms_work():
    done = _python(
        "from d2_cityscapes.data import ShardReader, write_shards\n"
        "from d2_cityscapes.layers import giou_loss\n"
        "from d2_cityscapes.modeling import fuse_panoptic, freeze_modules\n"
        "from d2_cityscapes.evaluation import PanopticQuality\n"
        "import d2_cityscapes.synthetic.dataset, d2_cityscapes.report.run\n"
        "import numpy as np\n"
        "pq = PanopticQuality(); ids = np.full((4, 4), 7); pq.update(ids, ids)\n"
        "assert pq.compute()['PQ'] == 100.0\n"
        "assert 'detectron2' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["get_cfg", "data.CityscapesShardMapper", "engine.Trainer"])
def test_glue_says_what_is_missing(name):
    module, _, attribute = f"d2_cityscapes.{name}".rpartition(".")
    done = _python(f"from {module} import {attribute}")
    assert done.returncode != 0
    assert "d2c install-detectron2" in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        "train_net.py --config-file configs/stage3.yaml",
        "run_stages.py --output-dir never",
        "kmeans_anchors.py --config-file configs/stage2.yaml --output never.json",
    ],
)
def test_commands_exit_with_one_line(repository, tmp_path, command):
    tool, *arguments = command.split()
    path = str(repository / "tools" / tool)
    done = _python(
        f"import runpy; sys.argv = {[path, *arguments]}\n"
        f"runpy.run_path({path!r}, run_name='__main__')"
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "d2c install-detectron2" in done.stderr

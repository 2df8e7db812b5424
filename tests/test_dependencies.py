"""Without Detectron2: one line, and the plain rooms still work."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'detectron2':
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda n, p=None: None if n.startswith('detectron2') else found(n, p)
"""


def _python(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-c", _HIDE + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_import_gives_one_line_with_the_command():
    done = _python("import d2_cityscapes")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "python tools/install_detectron2.py" in done.stderr


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
    assert "tools/install_detectron2.py" in done.stderr.strip().splitlines()[-1]


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
    assert "python tools/install_detectron2.py" in done.stderr

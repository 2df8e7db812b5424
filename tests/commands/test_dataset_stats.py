"""The command: help, a run on shards, and a user's mistakes as one line."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.data import ShardReader, write_shards
from d2_cityscapes.labels import IDD, VISTAS, LabelTable

TOOL = "tools/dataset_stats.py"


@pytest.fixture
def call(call):
    """Run the command in this process; returns exit code, stdout and stderr."""
    return partial(call, "tools/dataset_stats.py")


def _objects(shards, **selection):
    reader = ShardReader(shards, **selection)
    return sum(int((~reader.table(i).crowd).sum()) for i in range(len(reader)))


def test_help(call):
    code, out, _ = call("--help")
    assert code == 0
    for word in ("--shards", "--split", "--partitions", "--output", "half-open", "width / height"):
        assert word in out


def test_text_json_and_plot(call, datasets_root, tmp_path):
    shards, output = datasets_root / "cityscapes_shards", tmp_path / "new" / "folder"
    code, out, err = call("--shards", shards, "--split", "val", "--output", output)
    assert (code, err) == (0, "")
    content = json.loads((output / "statistics.json").read_text())
    assert content["source"] == {"shards": str(shards), "split": "val", "partitions": None}
    assert content["images"] == 8
    assert content["objects"] == _objects(shards, split="val")
    assert sorted(path.name for path in output.iterdir()) == ["statistics.json", "statistics.png"]
    with Image.open(output / "statistics.png") as picture:
        assert picture.size[0] >= 1000
    lines = [line.split() for line in out.splitlines()]
    car, width = content["classes"]["car"], content["width"]
    figures = [car["objects"], f"{car['percent']:.1f}", car["images"], car["groups"]]
    assert ["car", *map(str, figures)] in lines
    figures = [f"{width[key]:.2f}" for key in ("mean", "median", "min", "max")]
    assert ["box", "width", "[px]", *figures] in lines
    assert str(output / "statistics.png") in out


def test_tables_are_aligned(call, datasets_root):
    _, out, _ = call("--shards", datasets_root / "cityscapes_shards", "--split", "train")
    for block in out.split("\n\n"):
        if "#" not in block and len(block.splitlines()) > 1:
            assert len({len(line) for line in block.splitlines()}) == 1, block


def test_partitions_are_one_set(call, datasets, tmp_path):
    """Also: the folder that DETECTRON2_DATASETS names is the default."""
    arguments = ["--split", "train", "--partitions", 2, 1, 2, "--output", tmp_path]
    code, out, _ = call(*arguments)
    content = json.loads((tmp_path / "statistics.json").read_text())
    assert code == 0
    assert out.startswith("train, partitions 1 2 of ")
    assert content["source"]["partitions"] == [1, 2]
    shards = datasets / "cityscapes_shards"
    assert content["objects"] == _objects(shards, split="train", partitions=[1, 2])
    assert content["images"] == 2


def test_the_classes_are_those_of_the_shards(call, array_source, tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    for table, person in ((IDD, 5), (VISTAS, 20)):
        source = array_source("a.png", pixels, np.full((4, 6), person * 1000))
        folder = tmp_path / table.name
        write_shards([source], folder, split="val", table=table)
        for labels in ([], ["--labels", table.name]):
            code, out, err = call("--shards", folder, "--split", "val", *labels)
            assert code == 0, err
            rows = [line.split() for line in out.splitlines()]
            assert [table.classes[table.train_id_of[person]].name, "1", "100.0", "1", "0"] in rows
        code, _, err = call("--shards", folder, "--split", "val", "--labels", "cityscapes")
        assert code == 1 and f"made with another label table ({table.name})" in err
    own = LabelTable("streets", IDD.classes[:13], IDD.label_names)
    source = array_source("a.png", pixels, np.full((4, 6), 5))
    write_shards([source], tmp_path / "own", split="val", table=own)
    classes = tmp_path / "own" / "classes.yaml"
    for labels in ([], ["--labels", classes]):
        code, out, err = call("--shards", tmp_path / "own", "--split", "val", *labels)
        assert code == 0, err
        assert "vehicle fallback" in out
    classes.unlink()
    code, _, err = call("--shards", tmp_path / "own", "--split", "val")
    assert code == 1 and "label table streets, and its classes.yaml is missing" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shards", "nowhere", "--split", "val"], "nowhere: no index.json"),
        (["--split", "test"], "no shards of split 'test'"),
        (["--split", "val", "--partitions", 2, 7], "no partition 7 of split 'val'"),
    ],
)
def test_mistakes_are_one_line(call, datasets, tmp_path, arguments, message):
    code, out, err = call(*arguments, "--output", tmp_path / "output")
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err and "d2c prepare" in err
    assert not (tmp_path / "output").exists()


def test_an_output_that_is_a_file(call, datasets, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call("--split", "val", "--output", tmp_path / "file")
    assert code == 1
    assert "cannot be written" in err and err.count("\n") == 1


def test_missing_split(call):
    code, _, err = call()
    assert code == 2
    assert "--split" in err


def test_needs_no_detectron2(repository, datasets_root):
    hide = (
        "import importlib.util, runpy, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, p=None: None if n == 'detectron2' else found(n, p)\n"
        "sys.modules['detectron2'] = None\n"
        f"sys.argv = ['dataset_stats.py', '--shards', {str(datasets_root / 'cityscapes_shards')!r},"
        " '--split', 'val']\n"
        f"runpy.run_path({TOOL!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", hide]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "motorcycle" in done.stdout


def test_the_output_is_looked_at_first(call, tmp_path):
    (tmp_path / "statistics.png").mkdir()
    for output, word in (
        (tmp_path / "statistics.png" / "a", "nowhere: no index.json here"),
        (tmp_path, "statistics.png: is a folder"),
    ):
        code, out, err = call(
            "--shards", tmp_path / "nowhere", "--split", "val", "--output", output
        )
        assert (code, out) == (1, "") and word in err

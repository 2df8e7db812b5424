"""Trees of made-up scenes: layout, exactness, repeatability; the official tools as referees."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import lock_folder
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.instances import find_instances
from d2_cityscapes.synthetic.dataset import (
    Scene,
    SyntheticError,
    coarse_objects,
    image_name,
    make_tree,
    render_scene,
)
from d2_cityscapes.synthetic.street.canvas import min_visible

SIZE = {"height": 128, "width": 256}
ARGUMENTS = {"train": 2, "val": 3, "train_extra": 2, "seed": 5, **SIZE}
KINDS = {"train": "gtFine", "val": "gtFine", "train_extra": "gtCoarse"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("made") / "cityscapes", **ARGUMENTS)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(128, 256, rng=np.random.default_rng([9, 0, i])) for i in range(48)]


def contents(root: Path) -> dict[str, bytes]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def annotations(root: Path) -> list[Path]:
    return sorted(root.glob("gt*/*/*/*_polygons.json"))


def read_ids(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_layout_is_the_official_one(tree: Path) -> None:
    pictures = sorted(tree.glob("leftImg8bit/*/*/*.png"))
    assert Counter(p.parts[-3] for p in pictures) == {"train": 2, "val": 3, "train_extra": 2}
    for picture in pictures:
        split, city = picture.parts[-3:-1]
        name = re.fullmatch(rf"({city}_\d{{6}}_\d{{6}})_leftImg8bit\.png", picture.name)
        assert name is not None
        truth = f"{KINDS[split]}/{split}/{city}/{name[1]}_{KINDS[split]}"
        modes = {picture: ("RGB",), tree / f"{truth}_color.png": ("RGBA",)}
        modes[tree / f"{truth}_labelIds.png"] = ("L",)
        modes[tree / f"{truth}_instanceIds.png"] = ("I;16", "I")  # as read by Pillow
        for path, expected in modes.items():
            with Image.open(path) as image:
                assert image.mode in expected
                assert image.size == (256, 128)
        document = json.loads((tree / f"{truth}_polygons.json").read_text())
        assert (document["imgHeight"], document["imgWidth"]) == (128, 256)
    files = [p for p in tree.rglob("*") if p.is_file()]
    assert len(files) == 7 * 5 + 1
    assert {p.parent.name for p in pictures if "val" in p.parts} == {
        "frankfurt",
        "lindau",
        "munster",
    }


def test_names_do_not_repeat() -> None:
    for split, count in (("train", 2975), ("val", 500), ("train_extra", 3000)):
        names = {image_name(split, index) for index in range(count)}
        assert len({stem for _, stem in names}) == count
        assert all(stem.startswith(f"{city}_") for city, stem in names)


def test_official_rasterisers_draw_the_same_maps(tree: Path) -> None:
    """Occlusion is the drawing order of the polygons, and nothing but the polygons."""
    assert len(annotations(tree)) == 7
    for path in annotations(tree):
        annotation = Annotation()
        annotation.fromJsonFile(str(path))
        stem = str(path).removesuffix("_polygons.json")
        drawn = np.asarray(createInstanceImage(annotation, "ids"))
        assert (read_ids(Path(f"{stem}_instanceIds.png")) == drawn).all()
        drawn = np.asarray(createLabelImage(annotation, "ids"))
        assert (read_ids(Path(f"{stem}_labelIds.png")) == drawn).all()
        with Image.open(f"{stem}_color.png") as colors:
            drawn = np.asarray(createLabelImage(annotation, "color"))
            assert (np.asarray(colors) == drawn).all()


def test_label_ids_follow_from_instance_ids(tree: Path) -> None:
    for path in annotations(tree):
        stem = str(path).removesuffix("_polygons.json")
        ids = read_ids(Path(f"{stem}_instanceIds.png")).astype(np.int64)
        expected = np.where(ids < 1000, ids, ids // 1000)
        assert (read_ids(Path(f"{stem}_labelIds.png")) == expected).all()


def test_same_arguments_same_bytes_whatever_the_workers(tree: Path, tmp_path: Path) -> None:
    again = make_tree(tmp_path / "again", **ARGUMENTS, workers=2)
    assert contents(again) == contents(tree)


def test_an_image_depends_on_seed_split_and_index_alone(tree: Path, tmp_path: Path) -> None:
    fewer = contents(make_tree(tmp_path / "fewer", train=1, val=1, seed=5, **SIZE))
    del fewer["make_synthetic.json"]
    assert len(fewer) == 10
    assert fewer.items() <= contents(tree).items()
    other = contents(make_tree(tmp_path / "other", train=1, val=1, seed=6, **SIZE))
    pictures = [name for name in fewer if name.startswith("leftImg8bit")]
    assert all(other[name] != fewer[name] for name in pictures)
    first, second = (tree / name for name in sorted(pictures))
    assert first.read_bytes() != second.read_bytes()


def test_rerun_completes_what_is_missing(tmp_path: Path) -> None:
    arguments = {"train": 2, "val": 0, "seed": 1, **SIZE}
    root = make_tree(tmp_path / "tree", **arguments)
    before = contents(root)
    picture, *_, kept = sorted(root.glob("leftImg8bit/*/*/*.png"))
    picture.unlink()
    stamp = kept.stat().st_mtime_ns
    make_tree(root, **arguments)
    assert contents(root) == before
    assert kept.stat().st_mtime_ns == stamp


def test_scenes_are_those_of_earlier_versions(repository: Path) -> None:
    """What was trained on made-up scenes can be trained again: see tests/golden/README.md."""
    with np.load(repository / "tests" / "golden" / "scenes.npz") as golden:
        for name in {key.split("/")[0] for key in golden}:
            size, *seed = name.split("_")
            height, width = map(int, size.split("x"))
            scene = render_scene(height, width, rng=np.random.default_rng([*map(int, seed)]))
            assert (scene.instance_ids != golden[f"{name}/ids"]).mean() < 0.001
            cells = scene.image.astype(np.int64).reshape(height // 4, 4, width // 4, 4, 3)
            differ = np.abs(cells.sum(axis=(1, 3)) - golden[f"{name}/blocks"]) > 4
            assert differ.mean() < 0.001


def test_coarse_labels_are_never_wrong_only_fewer() -> None:
    for seed in range(4):
        scene = render_scene(256, 512, rng=np.random.default_rng(seed))
        coarse = Scene(scene.image, scene.instance_ids, coarse_objects(scene))
        document = Annotation()
        document.imgHeight, document.imgWidth = 256, 512
        document.fromJsonText(
            json.dumps(
                {
                    "imgHeight": 256,
                    "imgWidth": 512,
                    "objects": [{"label": x, "polygon": p} for x, p in coarse.objects],
                }
            )
        )
        labels = np.asarray(createLabelImage(document, "ids"))
        fine = scene.instance_ids
        fine = np.where(fine < 1000, fine, fine // 1000)
        drawn = labels != 0
        assert 0.4 < drawn.mean() < 0.95
        assert (labels[drawn] == fine[drawn]).mean() > 0.999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": -1}, "number of train images is -1"),
        ({"train_extra": -2}, "number of train_extra images is -2"),
        ({"height": 63}, "63 x 256"),
        ({"width": 127}, "128 x 127"),
        ({"workers": 0}, "number of workers is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(SyntheticError, match=message) as caught:
        make_tree(tmp_path / "tree", **{**ARGUMENTS, **change})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tree").exists()


def test_refuses_folders_that_are_not_its_own(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(SyntheticError, match="other arguments"):
        make_tree(tree, **{**ARGUMENTS, "seed": 6})
    (tmp_path / "photo.png").write_bytes(b"")
    (tmp_path / ".notes.json.1.tmp").write_bytes(b"")  # nor is what looks like its own
    with pytest.raises(SyntheticError, match="not empty"):
        make_tree(tmp_path, **ARGUMENTS)
    with pytest.raises(SyntheticError, match="is a file"):
        make_tree(tmp_path / "photo.png", **ARGUMENTS)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".notes.json.1.tmp", "photo.png"]


def test_command(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "datasets/make_synthetic.py"), "--output"]
    sizes = ["--train", "1", "--val", "0", "--height", "64", "--width", "128"]
    done = subprocess.run(
        [*command, str(tmp_path / "tree"), *sizes], capture_output=True, text=True, cwd=repository
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"1 scenes in {tmp_path / 'tree'}"
    assert len(list((tmp_path / "tree").glob("gtFine/train/aachen/*"))) == 4
    failed = subprocess.run(
        [*command, str(tmp_path / "tree"), *sizes, "--seed", "3"],
        capture_output=True,
        text=True,
        cwd=repository,
    )
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in failed.stderr


@settings(max_examples=12, deadline=None)
@given(st.integers(64, 160), st.integers(128, 320), st.integers(0, 2**32))
def test_scenes_of_any_size_are_valid(height: int, width: int, seed: int) -> None:
    scene = render_scene(height, width, rng=np.random.default_rng(seed))
    assert scene.image.shape == (height, width, 3)
    assert scene.image.dtype == np.uint8
    assert scene.instance_ids.shape == (height, width)
    assert scene.instance_ids.dtype == np.uint16
    assert CITYSCAPES.unknown_ids(scene.instance_ids) == []
    assert (scene.instance_ids > 0).all()  # nothing is unlabeled
    instances = np.unique(scene.instance_ids[scene.instance_ids >= 1000])
    counts = Counter(label for label, _ in scene.objects)
    names = dict(CITYSCAPES.label_names)
    for instance in instances.tolist():
        assert instance % 1000 < counts[names[instance // 1000]]
    table = find_instances(scene.instance_ids, CITYSCAPES)
    assert (table.areas[~table.crowd] >= min_visible((width, height))).all()
    for _, polygon in scene.objects:
        assert len(polygon) >= 3
        x, y = np.array(polygon).T
        assert x.min() >= 0 and y.min() >= 0 and x.max() < width and y.max() < height
    again = render_scene(height, width, rng=np.random.default_rng(seed))
    assert (again.image == scene.image).all()
    assert again.objects == scene.objects


def test_scenes_are_about_as_crowded_as_the_original(scenes: list[Scene]) -> None:
    """Cityscapes has 17.6 instances an image, most of them cars and persons."""
    tables = [find_instances(scene.instance_ids, CITYSCAPES) for scene in scenes]
    classes = [
        [CITYSCAPES.classes[c].name for c in table.classes[~table.crowd]] for table in tables
    ]
    assert 12 < np.mean([len(names) for names in classes]) < 22
    counts = Counter(name for names in classes for name in names)
    assert counts["car"] > counts["person"] > 3 * max(counts["truck"], counts["bicycle"])
    present = Counter(name for names in classes for name in set(names))
    for c in CITYSCAPES.things:
        assert present[c.name] >= 0.1 * len(scenes), c.name
    boxes = np.concatenate([table.boxes[~table.crowd] for table in tables]) * (1024 / 128)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert 0.25 < (area > 96**2).mean() < 0.6
    assert (area <= 32**2).mean() < 0.3
    assert any(table.crowd.any() for table in tables)


def test_scenes_show_every_stuff_class_and_void(scenes: list[Scene]) -> None:
    present = Counter(v for scene in scenes for v in np.unique(scene.instance_ids).tolist())
    for c in CITYSCAPES.stuff:
        assert present[c.label_id] >= 0.4 * len(scenes), c.name
    for label_id in (1, 2, 4, 5):  # ego vehicle, rectification border, static, dynamic
        assert present[label_id] > 0


def test_riders_sit_on_their_vehicles(scenes: list[Scene]) -> None:
    """A rider follows its two-wheeler in the drawing order; their boxes overlap."""
    pairs = 0
    for scene in scenes:
        for (below, p), (above, q) in zip(scene.objects, scene.objects[1:], strict=False):
            if above == "rider" and below in ("bicycle", "motorcycle"):
                (px0, py0), (px1, py1) = np.min(p, axis=0), np.max(p, axis=0)
                (qx0, qy0), (qx1, qy1) = np.min(q, axis=0), np.max(q, axis=0)
                assert px0 <= qx1 and qx0 <= px1 and qy0 <= py0 <= qy1 <= py1 + 1
                pairs += 1
    riders = sum(label == "rider" for scene in scenes for label, _ in scene.objects)
    assert pairs >= 0.6 * riders > 5


REFEREE = """
import json, sys, warnings
from pathlib import Path
import numpy as np
from PIL import Image
from cityscapesscripts.evaluation import (
    evalInstanceLevelSemanticLabeling as instance_level,
    evalPanopticSemanticLabeling as panoptic,
    evalPixelLevelSemanticLabeling as pixel_level,
)
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

warnings.simplefilter("ignore")  # means over classes that do not occur
root = Path(sys.argv[1])
truth = sorted(map(str, root.glob("gtFine/val/*/*_instanceIds.png")))
labels = [path.replace("instanceIds", "labelIds") for path in truth]

convert2panoptic(str(root / "gtFine"), ".", setNames=["val"])
json_file = "cityscapes_panoptic_val.json"
folder = json_file.removesuffix(".json")
quality = panoptic.evaluatePanoptic(json_file, folder, json_file, folder, "panoptic.json")

predictions = []
for number, path in enumerate(truth):
    ids, lines = np.asarray(Image.open(path)), []
    for value in np.unique(ids[ids >= 1000]).tolist():
        mask = Path(f"{number}_{value}.png")
        Image.fromarray((ids == value).astype(np.uint8) * 255).save(mask)
        lines.append(f"{mask} {value // 1000} 1.0")
    predictions.append(str(Path(f"{number}.txt").absolute()))
    Path(predictions[-1]).write_text("\\n".join(lines))
arguments = instance_level.args
arguments.quiet, arguments.JSONOutput = True, False
arguments.predictionPath = str(Path.cwd())
arguments.gtInstancesFile = "gtInstances.json"
instances = instance_level.evaluateImgLists(predictions, truth, arguments)

arguments = pixel_level.args
arguments.quiet, arguments.JSONOutput = True, False
pixels = pixel_level.evaluateImgLists(labels, labels, arguments)
print(json.dumps([
    [quality["All"][k] for k in ("pq", "sq", "rq")],
    [instances["averages"][k] for k in ("allAp", "allAp50%")],
    [pixels[k] for k in ("averageScoreClasses", "averageScoreCategories")],
]))
"""


@pytest.mark.skipif(
    tuple(int(x) for x in np.__version__.split(".")[:2]) >= (2, 3),
    reason="cityscapesscripts 2.3.0 evaluates with numpy below 2.3 only",
)
def test_official_tools_score_the_truth_as_perfect(tree: Path, tmp_path: Path) -> None:
    """In a process of its own: the tools keep global state and write into the working folder."""
    done = subprocess.run(
        [sys.executable, "-c", REFEREE, str(tree)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    panoptic, instances, pixels = json.loads(done.stdout.strip().splitlines()[-1])
    assert panoptic == pytest.approx([1, 1, 1])
    assert instances == pytest.approx([1, 1])
    assert pixels == pytest.approx([1, 1])


# --- processes -----------------------------------------------------------------------------------

_MAKE = """
import os, signal, sys
from tqdm import tqdm
from d2_cityscapes.errors import run
from d2_cityscapes.synthetic import dataset
def update(self):
    {act}
tqdm.update = update
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
{patch}
# a test suite in the background ignores Ctrl-C, and so would this
signal.signal(signal.SIGINT, signal.default_int_handler)
def main():
    dataset.make_tree(sys.argv[1], train=6, val=2, height=64, width=128, seed=1, workers=3)
run(main)
"""


def _make_in_a_process(root: Path, repository: Path, *, act: str = "pass", patch: str = ""):
    """Returns when the last process that holds the standard output has gone."""
    code = _MAKE.format(act=act, patch=patch)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(root)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=repository,
        start_new_session=True,
    )


def test_killed_it_leaves_no_worker_and_the_same_call_completes_it(
    repository: Path, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    done = _make_in_a_process(root, repository, act="os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL and done.stderr == ""
    left = next(root.glob("*/*/*/")) / ".a.png.123.tmp"
    left.write_bytes(b"half a picture")
    (root / ".make_synthetic.json.123.tmp").write_bytes(b"{")
    assert _make_in_a_process(root, repository).returncode == 0
    make_tree(tmp_path / "whole", train=6, val=2, height=64, width=128, seed=1)
    assert _content(root) == _content(tmp_path / "whole")


def _content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_killed_before_it_began_is_no_reason_to_refuse_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".make_synthetic.json.123.tmp").write_bytes(b"{")
    make_tree(tmp_path, train=1, val=0, height=64, width=128, seed=1)


def test_a_killed_worker_is_one_line(repository: Path, tmp_path: Path) -> None:
    done = _make_in_a_process(tmp_path / "tree", repository, patch="dataset.write_scene = die")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: a worker process was killed, for lack of memory perhaps")


def test_interrupted_it_says_so_in_one_line(repository: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal."""
    done = _make_in_a_process(tmp_path / "tree", repository, act="os.killpg(0, signal.SIGINT)")
    assert (done.returncode, done.stderr.splitlines()) == (130, ["interrupted"])


def test_two_at_once_in_one_folder(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path),
        pytest.raises(D2CityscapesError, match="another process is writing"),
    ):
        make_tree(tmp_path, train=1, val=0, height=64, width=128, seed=1)

"""tools/install_detectron2.py: its edit table, its refusals, and the Detectron2 that it leaves.

No network: the archive is made up from the edit table itself, pip is replaced by a function, and
what the real archive became is checked on the installed package. Those last tests hold for an
official build of Detectron2 main too; what only our wheel promises is asked of our wheel only.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


installer = _load_script()
Edit, InstallError = installer.Edit, installer.InstallError


# -- the edit table on trees that are made up here ----------------------------------------------


def _write(root: Path, path: str, text: str) -> Path:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    return target


def _fake_tree(root: Path) -> Path:
    """A tree on which the whole table applies: every old text, as often as its edit expects."""
    texts: dict[str, str] = {}
    for edit in installer.EDITS:
        texts[edit.path] = texts.get(edit.path, "\n") + (edit.old + "\n") * edit.count
    for path, text in texts.items():
        _write(root, path, text)
    for package in ("detectron2", *installer.PROJECTS.values()):
        _write(root, f"{package}/__init__.py", "")
    _write(root, "detectron2/model_zoo/configs/COCO-Detection/some.yaml", "MODEL: {}\n")
    _write(root, "LICENSE", "Apache License")
    _write(root, "README.md", "Detectron2 é")
    return root


def test_edit_replaces_its_text_and_reports_the_file(tmp_path):
    path = _write(tmp_path, "a/b.py", "x = np.int\ny = np.int\n")
    edits = [Edit("a/b.py", "np.int\n", "int\n", "numpy", count=2)]
    assert installer.apply_edits(tmp_path, edits) == ["a/b.py"]
    assert path.read_text() == "x = int\ny = int\n"


@pytest.mark.parametrize("count", [1, 3])
def test_edit_with_another_count_fails_loudly(tmp_path, count):
    path = _write(tmp_path, "b.py", "np.int np.int")
    with pytest.raises(InstallError, match=rf"b\.py \(why\).*{count} times 'np.int', found 2"):
        installer.apply_edits(tmp_path, [Edit("b.py", "np.int", "int", "why", count=count)])
    assert path.read_text() == "np.int np.int"


def test_edit_of_a_missing_file_names_it(tmp_path):
    with pytest.raises(InstallError, match=r"no/such\.py: there is no such file"):
        installer.apply_edits(tmp_path, [Edit("no/such.py", "a", "b", "why")])


def test_whole_table_applies_once_and_only_once(tmp_path):
    root = _fake_tree(tmp_path)
    installer.apply_edits(root)
    installer.add_files(root)
    for path in {edit.path for edit in installer.EDITS}:
        assert "np.int" not in (root / path).read_text()
    with pytest.raises(InstallError, match="edit of"):
        installer.apply_edits(root)
    with pytest.raises(InstallError, match="exists already"):
        installer.add_files(root)


def test_every_edit_changes_something_and_says_why():
    for edit in installer.EDITS:
        assert edit.old and edit.old != edit.new and edit.count >= 1
        assert edit.reason and "\n" not in edit.reason
    keys = [(edit.path, edit.old) for edit in installer.EDITS]
    assert len(set(keys)) == len(keys)


# -- the wheel ----------------------------------------------------------------------------------


def _build(folder: Path) -> Path:
    root = _fake_tree(folder / "tree")
    installer.apply_edits(root)
    installer.add_files(root)
    return installer.build_wheel(root, folder / "wheels")


def test_wheel_is_complete_and_its_record_is_right(tmp_path):
    wheel = _build(tmp_path)
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    assert [p.name for p in wheel.parent.iterdir()] == [wheel.name]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for project in ("point_rend", "deeplab", "panoptic_deeplab"):
            assert f"detectron2/projects/{project}/__init__.py" in names
        assert "detectron2/model_zoo/configs/COCO-Detection/some.yaml" in names
        assert "detectron2/utils/missing.py" in names
        info = "detectron2-0.6.dist-info"
        record = archive.read(f"{info}/RECORD").decode().splitlines()
        assert {line.split(",")[0] for line in record} == names
        for line in record:
            name, digest, size = line.split(",")
            if name.endswith("RECORD"):
                continue
            data = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
            assert digest == "sha256=" + expected.rstrip("=") and int(size) == len(data)
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "Name: detectron2\nVersion: 0.6\n" in metadata
        assert "Requires-Dist: fvcore>=0.1.5,<0.1.6\n" in metadata
        for dropped in ("black", "future", "<0.1.10", "opencv", "panopticapi", "://"):
            assert dropped not in metadata.split("\n\n")[0].replace("https://github.com", "")
        assert "numpy 1.24" in archive.read(f"{info}/COMPATIBILITY_EDITS.txt").decode()


def test_same_tree_gives_the_same_wheel(tmp_path):
    assert _build(tmp_path / "a").read_bytes() == _build(tmp_path / "b").read_bytes()


def test_pip_accepts_the_wheel(tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--disable-pip-version-check", "--target", str(tmp_path / "site")]
    subprocess.run([*command, str(_build(tmp_path))], check=True)
    assert (tmp_path / "site/detectron2/projects/deeplab/__init__.py").is_file()


def test_incomplete_archive_is_refused(tmp_path):
    root = _fake_tree(tmp_path)
    (root / "projects/DeepLab/deeplab/__init__.py").unlink()
    with pytest.raises(InstallError, match="no package projects/DeepLab/deeplab"):
        installer.build_wheel(root, tmp_path / "wheels")


# -- the archive --------------------------------------------------------------------------------


def _archive(path: Path, names: list[str], link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return path


def test_unpack_returns_the_top_folder(tmp_path):
    archive = _archive(tmp_path / "a.tar.gz", ["top/a.py", "top/b/c.py"])
    assert installer.unpack(archive, tmp_path / "out") == tmp_path / "out/top"
    assert (tmp_path / "out/top/b/c.py").read_bytes() == b"x"


@pytest.mark.parametrize("names, link", [(["top/../../evil"], ""), (["/evil"], ""), ([], "top/l")])
def test_unpack_refuses_what_leaves_the_folder(tmp_path, names, link):
    archive = _archive(tmp_path / "a.tar.gz", names, link)
    with pytest.raises(InstallError, match="refusing to unpack"):
        installer.unpack(archive, tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


def test_checksum_mismatch_names_both_sums(tmp_path):
    path = _write(tmp_path, "pb1.tar.gz", "other")
    actual = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(InstallError, match=f"{actual}, expected {installer.SDIST_SHA256}"):
        installer.check_sha256(path, installer.SDIST_SHA256)


# -- the command, with pip replaced -------------------------------------------------------------


class FakePip:
    """Stands in for every call of pip: the first unused answer whose key is in the command."""

    def __init__(self, *answers: tuple[str, int, str, Callable[[Path], object] | None]) -> None:
        self.answers = list(answers)
        self.commands: list[str] = []

    def __call__(self, arguments, build_tools=None) -> tuple[int, str]:
        command = " ".join(["-m pip", *arguments])
        self.commands.append(command)
        folder = Path(arguments[arguments.index("--dest") + 1]) if "--dest" in arguments else None
        text = (folder / "requirement.txt").read_text() if folder else ""
        for answer in self.answers:
            key, code, output, act = answer
            if key in command + text:
                self.answers.remove(answer)
                if act is not None:
                    assert folder is not None
                    act(folder)
                return code, output
        raise AssertionError(f"unexpected call of pip: {command} {text}")


@pytest.fixture
def nothing_installed(monkeypatch):
    """No Detectron2, and whatever module is asked for."""
    monkeypatch.setattr(installer, "find_detectron2", lambda: None)
    monkeypatch.setattr(installer, "_has_module", lambda name: True)


def _run(monkeypatch, capsys, pip: FakePip, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(installer, "_pip", pip)
    code = installer.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "output, message",
    [
        (
            "WARNING: Retrying after NewConnectionError(...)\nERROR: No matching",
            "is there a network",
        ),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "another SHA-256 than expected"),
        ("/usr/bin/python: No module named pip", "-m ensurepip"),
        (
            "  ValueError: broken\nerror: metadata-generation-failed\nhint: See",
            "ValueError: broken",
        ),
        ("  error: invalid command 'x'\nerror: metadata-generation-failed", "invalid command 'x'"),
        ("ERROR: Cannot install a and b\nERROR: ResolutionImpossible", "Cannot install a and b"),
        ("", "pip failed without a word"),
    ],
)
def test_failed_download_is_one_line(monkeypatch, capsys, nothing_installed, output, message):
    code, _, err = _run(monkeypatch, capsys, FakePip(("pb1", 1, output, None)))
    assert code == 1 and err.startswith("error: cannot download") and message in err
    assert err.count("\n") == 1


def test_wrong_archive_is_not_installed(monkeypatch, capsys, nothing_installed):
    pip = FakePip(("pb1", 0, "", lambda folder: _archive(folder / "pb1.tar.gz", ["top/setup.py"])))
    code, _, err = _run(monkeypatch, capsys, pip)
    assert code == 1 and "SHA-256" in err and "nothing was installed" in err
    assert err.count("\n") == 1 and len(pip.commands) == 1


def test_download_is_checked_by_pip_before_its_setup_runs(monkeypatch, capsys, nothing_installed):
    pip = FakePip((installer.SDIST_SHA256, 1, "ERROR: stop", None))
    _run(monkeypatch, capsys, pip)
    for option in ("--require-hashes", "--no-deps", "--no-build-isolation", "--no-binary :all:"):
        assert option in pip.commands[0]


def test_pip_that_refuses_the_archive_is_reported_with_one_that_does_not(
    monkeypatch, capsys, nothing_installed
):
    refusal = "ERROR: Distributions from PyPI cannot declare direct URL dependencies."
    pip = FakePip(("-m pip download", 1, refusal, None))
    code, _, err = _run(monkeypatch, capsys, pip)
    assert code == 1 and err.count("\n") == 1
    assert "-m pip install pip==25.3" in err
    assert len(pip.commands) == 1


@pytest.fixture
def fake_archive(tmp_path, monkeypatch):
    """The archive that pip "downloads" is the made-up tree, and its sum is the expected one."""
    root = _fake_tree(tmp_path / "pb1-detectron2-0.6")
    archive = tmp_path / "pb1-detectron2-0.6.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, arcname=root.name)
    data = archive.read_bytes()
    monkeypatch.setattr(installer, "SDIST_SHA256", hashlib.sha256(data).hexdigest())
    return ("pb1", 0, "", lambda folder: (folder / archive.name).write_bytes(data))


def test_install_passes_the_constraints_and_keeps_the_wheel(
    monkeypatch, capsys, nothing_installed, fake_archive, tmp_path
):
    constraints = _write(tmp_path, "pins.txt", "numpy==2.2.6\n")
    found = iter([None, installer.Found("0.6", "/site/detectron2")])
    monkeypatch.setattr(installer, "find_detectron2", lambda: next(found))
    pip = FakePip(fake_archive, ("install", 0, "", None))
    code, out, err = _run(
        monkeypatch, capsys, pip,
        "--constraint", str(constraints), "--wheel-dir", str(tmp_path / "keep"),
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "installed detectron2 0.6 in /site/detectron2"
    assert f"--constraint {constraints}" in pip.commands[-1]
    assert (tmp_path / "keep/detectron2-0.6-py3-none-any.whl").is_file()


def test_force_reinstalls_the_wheel_alone(monkeypatch, capsys, nothing_installed, fake_archive):
    found = installer.Found("0.6", "/site/detectron2")
    monkeypatch.setattr(installer, "find_detectron2", lambda: found)
    pip = FakePip(fake_archive, ("install", 0, "", None), ("--force-reinstall", 0, "", None))
    code, _, _ = _run(monkeypatch, capsys, pip, "--force")
    assert code == 0
    assert "--force-reinstall --no-deps" in pip.commands[-1]
    assert "--force-reinstall" not in pip.commands[-2]


def test_install_that_does_not_import_is_an_error(
    monkeypatch, capsys, nothing_installed, fake_archive
):
    pip = FakePip(fake_archive, ("install", 0, "", None))
    code, _, err = _run(monkeypatch, capsys, pip)
    assert code == 1 and "does not work: it cannot be imported" in err


def test_no_install_builds_whatever_is_installed(monkeypatch, capsys, fake_archive, tmp_path):
    monkeypatch.setattr(installer, "_has_module", lambda name: True)
    arguments = ("--no-install", "--wheel-dir", str(tmp_path / "keep"))
    code, out, _ = _run(monkeypatch, capsys, FakePip(fake_archive), *arguments)
    assert code == 0 and "built" in out
    assert (tmp_path / "keep/detectron2-0.6-py3-none-any.whl").is_file()


def test_missing_torch_is_one_line(monkeypatch, capsys, nothing_installed):
    monkeypatch.setattr(installer, "_has_module", lambda name: name != "torch")
    code, _, err = _run(monkeypatch, capsys, FakePip())
    assert code == 1 and err.startswith("error: torch must be installed before detectron2")
    assert err.count("\n") == 1


def test_missing_constraints_file_is_one_line(monkeypatch, capsys, nothing_installed):
    code, _, err = _run(monkeypatch, capsys, FakePip(), "--constraint", "no/such.txt")
    assert (code, err) == (1, "error: no/such.txt: there is no such constraints file\n")


def test_build_tools_are_fetched_only_where_they_lack(monkeypatch, tmp_path):
    pip = FakePip(("install", 0, "", None))
    monkeypatch.setattr(installer, "_pip", pip)
    monkeypatch.setattr(installer, "_has_module", lambda name: name in ("setuptools", "wheel"))
    assert installer._fetch_build_tools(tmp_path) is None and not pip.commands
    monkeypatch.setattr(installer, "_has_module", lambda name: name == "setuptools")
    assert installer._fetch_build_tools(tmp_path) == tmp_path
    assert "--target" in pip.commands[0]


# -- a Detectron2 that is there already ---------------------------------------------------------


def _fake_detectron2(folder: Path, version: str, engine: str = "") -> Path:
    _write(folder, "detectron2/__init__.py", f"__version__ = {version!r}\n")
    _write(folder, "detectron2/engine.py", engine)
    _write(folder, "detectron2/modeling.py", "")
    return folder


def _command(path: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )


def test_importable_detectron2_is_left_alone(tmp_path):
    installed = _fake_detectron2(tmp_path / "installed", "0.6")
    elsewhere = _fake_detectron2(tmp_path / "cwd", "9.9")
    result = _command(installed, elsewhere)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"detectron2 0.6 in {installed / 'detectron2'} is left alone\n"


def test_broken_detectron2_is_named_and_kept(tmp_path):
    installed = _fake_detectron2(tmp_path, "0.6", "raise ImportError('libc10.so')")
    result = _command(installed, tmp_path)
    assert result.returncode == 1 and result.stdout == ""
    assert "broken (ImportError: libc10.so); --force replaces it" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "version, enough", [("0.5", False), ("0.6", True), ("0.6+cu113", True), ("1.0", True)]
)
def test_version_is_compared_by_number(version, enough):
    assert installer.Found(version, "").new_enough is enough


def test_folder_in_the_current_directory_is_no_installation(tmp_path, monkeypatch):
    (tmp_path / "no_packages").mkdir()
    _fake_detectron2(tmp_path / "cwd", "9.9")
    monkeypatch.chdir(tmp_path / "cwd")
    found = installer.find_detectron2()
    assert found is None or found.version != "9.9"


def test_wrong_usage_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        installer.main(["--no-install"])
    assert stop.value.code == 2 and "--wheel-dir" in capsys.readouterr().err


# -- the Detectron2 of this environment ---------------------------------------------------------


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


OUR_WHEEL = _importable("detectron2.utils.missing")
COMPILED = _importable("detectron2._C")
REINSTALL = "made from an older table: run tools/install_detectron2.py --force"


def test_our_wheel_carries_every_edit():
    if not OUR_WHEEL:
        return  # an official build: nothing was edited
    root = Path(importlib.util.find_spec("detectron2").origin).parent.parent
    projects = {
        folder: f"detectron2/projects/{name}" for name, folder in installer.PROJECTS.items()
    }
    for edit in installer.EDITS:
        folder, _, file = edit.path.rpartition("/")
        text = (root / projects.get(folder, folder) / file).read_text(encoding="utf-8")
        assert edit.new in text, f"{REINSTALL}: {edit}"
        assert edit.old in edit.new or edit.old not in text, f"{REINSTALL}: {edit}"
    for added in installer.ADDED_FILES:
        assert (root / added.path).read_text(encoding="utf-8") == added.text


def _box_iou_rotated() -> torch.Tensor:
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated

    boxes = torch.tensor([[5.0, 5.0, 4.0, 2.0, 0.0]])
    return pairwise_iou_rotated(boxes, boxes)


def _nms_rotated() -> torch.Tensor:
    from detectron2.layers import nms_rotated

    return nms_rotated(torch.tensor([[5.0, 5.0, 4.0, 2.0, 0.0]]), torch.ones(1), 0.5)


def _roi_align_rotated() -> torch.Tensor:
    from detectron2.layers import ROIAlignRotated

    rois = torch.tensor([[0.0, 2.0, 2.0, 2.0, 2.0, 0.0]])
    return ROIAlignRotated((1, 1), 1.0, 0)(torch.ones(1, 1, 4, 4), rois)


@pytest.mark.parametrize("operator", [_box_iou_rotated, _nms_rotated, _roi_align_rotated])
def test_operator_without_the_extension_says_so_on_use(operator):
    if COMPILED:
        assert operator().numel() == 1
    elif OUR_WHEEL:
        with pytest.raises(ImportError, match=r"needs detectron2\._C, which is not installed"):
            operator()
    else:  # an official tree that was not compiled: torch names the operator
        with pytest.raises((ImportError, AttributeError, RuntimeError)):
            operator()


def test_projects_import_without_opencv_and_panopticapi():
    projects = ["deeplab", "point_rend", "panoptic_deeplab"] if OUR_WHEEL else ["deeplab"]
    for name in projects:
        importlib.import_module(f"detectron2.projects.{name}")


def test_exporting_does_not_need_caffe2():
    from detectron2.export import TracingAdapter, scripting_with_instances

    assert callable(TracingAdapter) and callable(scripting_with_instances)


def test_model_zoo_finds_its_configs_and_weights():
    if not (OUR_WHEEL or _importable("pkg_resources")):
        return  # official builds ask setuptools older than 82 for the path
    from detectron2 import model_zoo

    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    assert Path(model_zoo.get_config_file(name)).is_file()
    assert model_zoo.get_checkpoint_url(name).endswith(".pkl")
    assert model_zoo.get_config(name).MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    with pytest.raises(RuntimeError, match="not available"):
        model_zoo.get_config_file("no/such.yaml")


def test_numpy_and_pillow_names_are_current():
    from detectron2.data.build import print_instances_class_histogram
    from detectron2.data.transforms import ExtentTransform
    from detectron2.structures import PolygonMasks
    from detectron2.structures.masks import polygons_to_bitmask

    assert polygons_to_bitmask([], 2, 3).dtype == bool
    square = np.array([0.0, 0, 4, 0, 4, 4, 0, 4])
    assert polygons_to_bitmask([square], 4, 4).all()
    assert PolygonMasks([[square]]).nonempty().tolist() == [True]
    print_instances_class_histogram([{"annotations": [{"category_id": 1}]}], ["a", "b"])
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert ExtentTransform((0, 0, 4, 4), (4, 4)).apply_image(picture).tolist() == picture.tolist()


def test_mapper_that_returns_none_does_not_end_the_epoch():
    from detectron2.data import MapDataset

    dataset = MapDataset(list(range(10)), lambda n: None if n < 5 else n)
    assert all(dataset[index] >= 5 for index in range(10))
    assert dataset[7] == 7


def _scheduler(kind: str, optimizer: torch.optim.Optimizer):
    from detectron2.solver import LRMultiplier, WarmupParamScheduler
    from fvcore.common.param_scheduler import CosineParamScheduler

    if kind == "torch":
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=3)
    if kind == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)
    warmup = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.01, 0.2, "linear")
    return LRMultiplier(optimizer, warmup, max_iter=10)


@pytest.mark.parametrize("kind", ["torch", "plateau", "detectron2"])
def test_learning_rates_go_on_after_a_resume(tmp_path, kind):
    """Ten steps in one run and five plus five with a resume between see the same rates."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import HookBase, SimpleTrainer, hooks

    class Record(HookBase):
        def __init__(self) -> None:
            self.rates: list[float] = []

        def before_step(self) -> None:
            self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])

    class Schedule(hooks.LRScheduler):
        def after_step(self) -> None:
            self.scheduler.step(*([1.0] if kind == "plateau" else []))

    class Model(torch.nn.Linear):
        def forward(self, data: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": super().forward(data).square().sum()}

    def run(folder: Path, stop: int, resume: bool = False) -> list[float]:
        model = Model(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer = SimpleTrainer(model, [torch.ones(1, 2)] * stop, optimizer)
        record = Record()
        trainer.register_hooks([Schedule(optimizer, _scheduler(kind, optimizer)), record])
        checkpointer = DetectionCheckpointer(model, str(folder), trainer=trainer)
        checkpointer.resume_or_load("", resume=resume)
        start = trainer.iter + 1 if resume else 0
        trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, stop)])
        trainer.train(start, stop)
        return record.rates

    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()
    whole = run(tmp_path / "whole", 10)
    halves = run(tmp_path / "halves", 5) + run(tmp_path / "halves", 10, resume=True)
    assert len(set(whole)) > 1
    assert halves == pytest.approx(whole)


@pytest.fixture
def tiny_dataset(tmp_path):
    """Two 8x8 pictures, each with one square of class 0 and its semantic truth."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode

    truth = np.zeros((8, 8), dtype=np.uint8)
    truth[2:6, 2:6] = 1
    Image.fromarray(truth).save(tmp_path / "truth.png")
    annotation = {
        "bbox": [2, 2, 6, 6],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "iscrowd": 0,
        "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6]],
    }
    records = [
        {
            "file_name": f"{index}.png",
            "sem_seg_file_name": str(tmp_path / "truth.png"),
            "image_id": index,
            "height": 8,
            "width": 8,
            "annotations": [annotation],
        }
        for index in range(2)
    ]
    name = "install_detectron2_tiny"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        thing_classes=["square"], stuff_classes=["rest", "square"], ignore_label=255
    )
    yield name, records, truth
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_coco_evaluation_needs_no_option_without_the_extension(tiny_dataset, tmp_path):
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, Instances

    name, records, truth = tiny_dataset
    evaluator = COCOEvaluator(name, distributed=False, output_dir=str(tmp_path))
    evaluator.reset()
    for record in records:
        instances = Instances((8, 8))
        instances.pred_boxes = Boxes(torch.tensor([[2.0, 2.0, 6.0, 6.0]]))
        instances.scores = torch.ones(1)
        instances.pred_classes = torch.zeros(1, dtype=torch.int64)
        instances.pred_masks = torch.from_numpy(truth == 1)[None]
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)


def test_semantic_evaluation_runs(tiny_dataset):
    from detectron2.evaluation import SemSegEvaluator

    name, records, truth = tiny_dataset
    evaluator = SemSegEvaluator(name, distributed=False)
    evaluator.reset()
    logits = torch.nn.functional.one_hot(torch.from_numpy(truth).long(), 2).permute(2, 0, 1).float()
    for record in records:
        evaluator.process([record], [{"sem_seg": logits}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)

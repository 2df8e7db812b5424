"""Each thing that a newcomer gets wrong is named, with what to do about it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from d2_cityscapes.data import write_shards
from d2_cityscapes.doctor import examination, machine, model
from d2_cityscapes.doctor.datasets import dataset_findings
from d2_cityscapes.doctor.examination import examine
from d2_cityscapes.doctor.findings import Finding, as_json, as_text, problems
from d2_cityscapes.doctor.machine import machine_findings, shared_memory
from d2_cityscapes.doctor.model import model_findings
from d2_cityscapes.doctor.software import software_findings
from d2_cityscapes.labels.table_file import ClassEntry, make_table
from d2_cityscapes.synthetic.dataset import MARKER

Usage = namedtuple("Usage", "total used free")


def remedy_of(findings, name: str) -> str:
    (found,) = [finding for finding in findings if finding.name == name]
    return found.remedy


def test_a_machine_that_runs_this_suite_has_all_software():
    findings = list(software_findings())
    assert problems(findings) == []
    assert {"python", "torch", "numpy", "detectron2"} <= {finding.name for finding in findings}


def test_a_tiny_network_computes():
    assert problems(model_findings()) == []


def test_a_gpu_that_pytorch_cannot_use(monkeypatch):
    monkeypatch.setattr(model, "unusable_gpu", lambda: "driver too old: install a newer one")
    assert remedy_of(model_findings(), "gpu") == "driver too old: install a newer one"


def test_a_tiny_network_on_a_gpu_is_compared(fake_gpu):
    findings = list(model_findings())
    assert len(findings) == 2 and problems(findings) == []
    assert "off by 0" in findings[1].value


def test_without_detectron2_it_names_the_installer():
    code = (
        "import importlib.util, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = (\n"
        "    lambda n, p=None: None if n.startswith('detectron2') else found(n, p)\n"
        ")\n"
        "import d2c; d2c.main(['doctor'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "! detectron2" in done.stdout and "d2c install-detectron2" in done.stdout


def test_a_pytorch_that_cannot_be_imported(tmp_path, repository):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open it')")
    done = subprocess.run(
        [sys.executable, repository / "d2c.py", "doctor"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{repository}"},
    )
    assert done.returncode == 1 and done.stderr == ""
    assert "broken: OSError: libcudart.so.12" in done.stdout
    assert "pip install --force-reinstall torch torchvision" in done.stdout


def test_a_package_that_is_there_and_broken(monkeypatch, tmp_path):
    def broken():
        raise ModuleNotFoundError("No module named 'PIL'", name="PIL")

    monkeypatch.setattr(examination, "_datasets", broken)
    remedy = remedy_of(examine(tmp_path), "cannot be looked at")
    assert remedy == "pip install --force-reinstall pillow"


@pytest.mark.parametrize(("mib", "remedy"), [(64, True), (8192, False)])
def test_shared_memory(tmp_path, monkeypatch, mib, remedy):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(mib << 20, 0, mib << 20))
    (finding,) = shared_memory(tmp_path)
    assert ("--shm-size" in finding.remedy and "NUM_WORKERS 0" in finding.remedy) == remedy


def test_a_full_disk_and_one_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 0))
    assert "GB" in remedy_of(machine_findings(tmp_path / "new"), "free disk")

    def refuse(folder: Path) -> float:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine, "_write_speed", refuse)
    assert remedy_of(machine_findings(tmp_path), "writing")


def test_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    assert "ulimit -n" in remedy_of(machine_findings(tmp_path), "open files")


def test_no_folder_of_datasets(tmp_path):
    findings = list(dataset_findings(str(tmp_path / "nowhere")))
    assert "export DETECTRON2_DATASETS" in remedy_of(findings, "folder")


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    findings = list(dataset_findings(str(tmp_path / "file")))
    assert "a file" in findings[0].value
    assert "export DETECTRON2_DATASETS" in remedy_of(findings, "folder")


def test_the_folder_of_shards_in_place_of_the_one_above(datasets_root):
    findings = dataset_findings(str(datasets_root / "cityscapes_shards"))
    assert f"export DETECTRON2_DATASETS={datasets_root}," in remedy_of(findings, "folder")


def test_an_empty_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert remedy_of(dataset_findings(str(tmp_path)), "shards").startswith("export DETECTRON2")


def test_no_shards_but_a_tree(tmp_path, cityscapes_tree):
    (tmp_path / "cityscapes").symlink_to(cityscapes_tree)
    remedy = remedy_of(dataset_findings(str(tmp_path)), "shards")
    assert remedy.startswith(f"d2c prepare --cityscapes {tmp_path / 'cityscapes'} --output")


def test_whole_shards_are_counted_beside_the_official_numbers(datasets_root):
    findings = list(dataset_findings(str(datasets_root)))
    values = {finding.name: finding.value for finding in findings}
    assert "the official set has 2975" in values["cityscapes_shards, train"]
    assert "a second" in values["cityscapes_shards, reading"]
    assert [f for f in problems(findings) if "reading" not in f.name] == []


@pytest.mark.parametrize("damage", ["lost", "cut", "no index"])
def test_half_copied_shards(tmp_path, datasets_root, damage):
    copy = tmp_path / "cityscapes_shards"
    shutil.copytree(datasets_root / "cityscapes_shards", copy)
    shard = sorted(copy.glob("train_*.safetensors"))[-1]
    if damage == "lost":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:1000])
    else:
        (copy / "index.json").unlink()
    (found,) = [f for f in problems(dataset_findings(str(tmp_path))) if "reading" not in f.name]
    assert "copy" in found.remedy and "d2c prepare" in found.remedy
    assert ("1 of 8 shards missing or cut short" in found.value) == (damage != "no index")


def test_shards_of_ones_own_classes(tmp_path, array_source):
    table = make_table("harbour", [ClassEntry("quay")])
    source = array_source("a.png", np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), int))
    write_shards([source], tmp_path / "harbour_shards", split="train", table=table)
    values = {f.name: f.value for f in dataset_findings(str(tmp_path))}
    assert values["harbour_shards, train"] == "1 images"
    (tmp_path / "harbour_shards" / "classes.yaml").unlink()
    (found,) = problems(dataset_findings(str(tmp_path)))
    assert "its classes.yaml is missing" in found.value and "copy" in found.remedy


def test_a_half_unpacked_tree(tmp_path, cityscapes_tree):
    copy = tmp_path / "cityscapes"
    shutil.copytree(cityscapes_tree, copy)
    labels = sorted((copy / "gtFine/val").glob("*/*_instanceIds.png"))
    labels[0].unlink()
    remedy = remedy_of(dataset_findings(str(tmp_path)), "cityscapes, val")
    assert "1 pictures have no labels" in remedy and "unpack gtFine_trainvaltest.zip" in remedy


def test_a_download_that_is_not_whole(tmp_path, cityscapes_tree):
    copy = tmp_path / "cityscapes"
    shutil.copytree(cityscapes_tree, copy)
    assert remedy_of(dataset_findings(str(tmp_path)), "cityscapes, train") == ""  # made-up scenes
    (copy / MARKER).unlink()
    remedy = remedy_of(dataset_findings(str(tmp_path)), "cityscapes, train")
    assert "2967 pictures are missing: unpack leftImg8bit_trainvaltest.zip" in remedy


def test_a_part_of_train_extra_is_no_mistake(tmp_path):
    for kind, name in (("leftImg8bit", "leftImg8bit"), ("gtCoarse", "gtCoarse_instanceIds")):
        folder = tmp_path / kind / "train_extra" / "bremen"
        folder.mkdir(parents=True)
        (folder / f"bremen_000000_000019_{name}.png").touch()
    name = f"{tmp_path.name}, train_extra"
    assert remedy_of(dataset_findings(str(tmp_path)), name) == ""


def test_text_and_json_say_the_same():
    findings = [Finding("machine", "a", "1"), Finding("machine", "b", "2", "do that")]
    assert as_text(findings).splitlines() == ["machine", "  a  1", "! b  2", "     -> do that"]
    assert as_json(findings)["problems"] == 1
    assert as_json(findings)["findings"][1]["remedy"] == "do that"


def test_the_command(call, datasets, tmp_path):
    code, out, _ = call("d2c.py", "doctor", "--json", "--output", tmp_path)
    found = json.loads(out)
    assert code == (found["problems"] > 0)
    assert {"software", "machine", "datasets", "model"} == {f["topic"] for f in found["findings"]}

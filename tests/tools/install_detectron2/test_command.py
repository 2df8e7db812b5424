"""The command: its ways in, its refusals, and the order of its steps, with pip replaced."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from install_detectron2 import command, download
from install_detectron2.probe import Found

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPT = REPOSITORY / "tools/install_detectron2.py"
PACKAGE = REPOSITORY / "tools/install_detectron2"


def _run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = command.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "output, message",
    [
        ("ERROR: Max retries exceeded", "is there a network"),
        ("ERROR: Distributions from PyPI cannot declare direct URL dependencies.", "pip==25.3"),
    ],
)
def test_failed_download_is_one_line(capsys, nothing_installed, fake_pip, output, message):
    pip = fake_pip(("-m pip download", 1, output, None))
    code, _, err = _run(capsys)
    assert code == 1 and err.startswith("error: cannot download") and message in err
    assert err.count("\n") == 1 and len(pip.commands) == 1


def test_wrong_archive_is_not_installed(capsys, nothing_installed, fake_pip):
    pip = fake_pip(("pb1", 0, "", lambda folder: (folder / "pb1.tar.gz").write_text("other")))
    code, _, err = _run(capsys)
    assert code == 1 and "SHA-256" in err and "nothing was installed" in err
    assert err.count("\n") == 1 and len(pip.commands) == 1


@pytest.fixture
def fake_archive(tmp_path, monkeypatch, fake_tree):
    """The archive that pip "downloads" is the made-up tree, and its sum is the expected one."""
    root = fake_tree(tmp_path / "pb1-detectron2-0.6")
    archive = tmp_path / "pb1-detectron2-0.6.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, arcname=root.name)
    data = archive.read_bytes()
    monkeypatch.setattr(download, "SDIST_SHA256", hashlib.sha256(data).hexdigest())
    return ("pb1", 0, "", lambda folder: (folder / archive.name).write_bytes(data))


def test_install_passes_the_constraints_and_keeps_the_wheel(
    monkeypatch, capsys, nothing_installed, fake_pip, fake_archive, tmp_path
):
    constraints = tmp_path / "pins.txt"
    constraints.write_text("numpy==2.2.6\n")
    found = iter([None, Found("0.6", "/site/detectron2")])
    monkeypatch.setattr(command, "find_detectron2", lambda: next(found))
    pip = fake_pip(fake_archive, ("install", 0, "", None))
    code, out, err = _run(
        capsys, "--constraint", str(constraints), "--wheel-dir", str(tmp_path / "keep")
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "installed detectron2 0.6 in /site/detectron2"
    assert f"--constraint {constraints}" in pip.commands[-1]
    assert (tmp_path / "keep/detectron2-0.6-py3-none-any.whl").is_file()


def test_force_replaces_what_is_importable(
    monkeypatch, capsys, nothing_installed, fake_pip, fake_archive
):
    monkeypatch.setattr(command, "find_detectron2", lambda: Found("0.6", "/site/detectron2"))
    pip = fake_pip(fake_archive, ("install", 0, "", None), ("--force-reinstall", 0, "", None))
    code, _, _ = _run(capsys, "--force")
    assert code == 0
    assert "--force-reinstall --no-deps" in pip.commands[-1]


def test_install_that_does_not_import_is_an_error(
    capsys, nothing_installed, fake_pip, fake_archive
):
    fake_pip(fake_archive, ("install", 0, "", None))
    code, _, err = _run(capsys)
    assert code == 1 and "does not work: it cannot be imported" in err


def test_no_install_builds_whatever_is_installed(
    monkeypatch, capsys, nothing_installed, fake_pip, fake_archive, tmp_path
):
    monkeypatch.setattr(command, "find_detectron2", lambda: Found("0.6", "/site/detectron2"))
    pip = fake_pip(fake_archive)
    code, out, _ = _run(capsys, "--no-install", "--wheel-dir", str(tmp_path / "keep"))
    assert code == 0 and "built" in out and len(pip.commands) == 1
    assert (tmp_path / "keep/detectron2-0.6-py3-none-any.whl").is_file()


def test_missing_torch_is_one_line(monkeypatch, capsys, nothing_installed, fake_pip):
    monkeypatch.setattr(command, "has_module", lambda name: name != "torch")
    pip = fake_pip()
    code, _, err = _run(capsys)
    assert code == 1 and err.startswith("error: torch must be installed before detectron2")
    assert err.count("\n") == 1 and not pip.commands


def test_missing_constraints_file_is_one_line(capsys, nothing_installed, fake_pip):
    fake_pip()
    code, _, err = _run(capsys, "--constraint", "no/such.txt")
    assert (code, err) == (1, "error: no/such.txt: there is no such constraints file\n")


def test_wrong_usage_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--no-install"])
    assert stop.value.code == 2 and "--wheel-dir" in capsys.readouterr().err


# -- in a process of its own, with a Detectron2 that is there already ---------------------------


def _fake_detectron2(folder: Path, version: str, engine: str = "") -> Path:
    package = folder / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__version__ = {version!r}\n")
    (package / "engine.py").write_text(engine)
    (package / "modeling.py").write_text("")
    return folder


def _python(
    arguments: Sequence[str], installed: Path, cwd: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("way_in", [[str(SCRIPT)], [str(PACKAGE)], ["-P", str(SCRIPT)]])
def test_importable_detectron2_is_left_alone(tmp_path, way_in):
    installed = _fake_detectron2(tmp_path / "installed", "0.6")
    elsewhere = _fake_detectron2(tmp_path / "cwd", "9.9")
    result = _python(way_in, installed, elsewhere)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"detectron2 0.6 in {installed / 'detectron2'} is left alone\n"


def test_package_runs_under_another_name_and_in_another_place(tmp_path):
    installed = _fake_detectron2(tmp_path, "0.6")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "street/installer", ignore=ignored)
    result = _python(["-m", "street.installer"], installed, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("is left alone\n")


def test_broken_detectron2_is_named_and_kept(tmp_path):
    installed = _fake_detectron2(tmp_path, "0.6", "raise ImportError('libc10.so')")
    result = _python([str(SCRIPT)], installed, tmp_path)
    assert result.returncode == 1 and result.stdout == ""
    assert "broken (ImportError: libc10.so); --force replaces it" in result.stderr
    assert result.stderr.count("\n") == 1

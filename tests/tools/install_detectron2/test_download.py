"""The archive is checked, by pip and again here, before anything is made of it."""

from __future__ import annotations

import hashlib

import pytest
from install_detectron2 import download
from install_detectron2.edits import SDIST_SHA256
from install_detectron2.errors import InstallError


def test_checksum_mismatch_names_both_sums(tmp_path):
    path = tmp_path / "pb1.tar.gz"
    path.write_text("other")
    actual = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(InstallError, match=f"{actual}, expected {SDIST_SHA256}"):
        download.check_sha256(path, SDIST_SHA256)


def test_wrong_archive_is_refused(tmp_path, fake_pip, nothing_installed):
    fake_pip(("pb1", 0, "", lambda folder: (folder / "pb1.tar.gz").write_text("other")))
    with pytest.raises(InstallError, match=r"SHA-256 is .* nothing was installed"):
        download.download_sdist(tmp_path)


def test_pip_that_leaves_no_archive_is_reported(tmp_path, fake_pip, nothing_installed):
    fake_pip(("pb1", 0, "", None))
    with pytest.raises(InstallError, match=r"expected one \.tar\.gz from pip, found 0"):
        download.download_sdist(tmp_path)


def test_download_is_checked_by_pip_before_its_setup_runs(tmp_path, fake_pip, nothing_installed):
    pip = fake_pip((SDIST_SHA256, 1, "ERROR: stop", None))
    with pytest.raises(InstallError, match=r"cannot download pb1-detectron2==0\.6: stop"):
        download.download_sdist(tmp_path)
    for option in ("--require-hashes", "--no-deps", "--no-build-isolation", "--no-binary :all:"):
        assert option in pip.commands[0]


def test_build_tools_are_fetched_only_where_they_lack(monkeypatch, tmp_path, fake_pip):
    pip = fake_pip(("install", 0, "", None))
    monkeypatch.setattr(download, "has_module", lambda name: name in ("setuptools", "wheel"))
    assert download._fetch_build_tools(tmp_path) is None and not pip.commands
    monkeypatch.setattr(download, "has_module", lambda name: name == "setuptools")
    assert download._fetch_build_tools(tmp_path) == tmp_path
    assert "--target" in pip.commands[0]

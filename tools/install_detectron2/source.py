"""The source tree: unpacked and edited."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from .edits import ADDED_FILES, EDITS, AddedFile, Edit
from .errors import InstallError

__all__ = ["add_files", "apply_edits", "unpack"]


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the archive below `folder`; returns its single top folder.

    Only plain files and folders that stay below `folder` are accepted.
    """
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        for member in members:
            parts = PurePosixPath(member.name)
            inside = not parts.is_absolute() and ".." not in parts.parts
            if not (inside and (member.isfile() or member.isdir())):
                raise InstallError(f"{archive.name}: refusing to unpack {member.name!r}")
        tops = {PurePosixPath(member.name).parts[0] for member in members}
        if len(tops) != 1:
            raise InstallError(f"{archive.name}: expected one top folder, found {sorted(tops)}")
        for member in members:
            target = folder / member.name
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                target.write_bytes(source.read())
    return folder / tops.pop()


def apply_edits(root: Path, edits: Iterable[Edit] = EDITS) -> list[str]:
    """Apply the edits to the tree at `root`; returns the edited paths.

    An edit that does not find its text exactly as often as it says means that the tree is not
    the one it was written for, and ends the installation.
    """
    touched: dict[str, None] = {}
    for edit in edits:
        path = root / edit.path
        if not path.is_file():
            raise InstallError(f"edit of {edit.path}: there is no such file")
        text = path.read_text(encoding="utf-8")
        found = text.count(edit.old)
        if found != edit.count:
            raise InstallError(
                f"edit of {edit.path} ({edit.reason}): expected {edit.count} times "
                f"{edit.old!r}, found {found}"
            )
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
        touched[edit.path] = None
    return list(touched)


def add_files(root: Path, files: Iterable[AddedFile] = ADDED_FILES) -> None:
    """Write the files that the archive does not have; one that exists ends the installation."""
    for added in files:
        path = root / added.path
        if path.exists():
            raise InstallError(f"added file {added.path} ({added.reason}): it exists already")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(added.text, encoding="utf-8")

"""Files that come with the package: configs, and the installer of Detectron2.

In a checkout they stand beside it, where people look for them; in a wheel within it.
"""

from __future__ import annotations

from pathlib import Path

from d2_cityscapes.errors import D2CityscapesError, nearest

__all__ = ["CONFIGS", "config_names", "find_config", "nearest_config", "shipped"]

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """What setup.py packs under this path: "configs", "constraints.txt", ...

    Raises:
        D2CityscapesError: the installation is not complete.
    """
    for root in (_PACKAGE / "shipped", _PACKAGE.parent):
        if (root / name).exists():
            return root / name
    raise D2CityscapesError(f"{_PACKAGE}: {name} is missing; install d2_cityscapes again")


CONFIGS = shipped("configs")


def find_config(path: str | Path) -> Path:
    """The file itself, or one of that name in the shipped configs where there is no such file.

    "stage3.yaml" and "configs/stage3.yaml" both mean the shipped one outside of a checkout. A path
    that is nowhere comes back as it is.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    parts = path.parts[1:] if path.parts[:1] == (CONFIGS.name,) else path.parts
    shipped = CONFIGS.joinpath(*parts)
    return shipped if shipped.exists() and ".." not in parts else path


def config_names() -> list[str]:
    """The shipped configs as `find_config` takes them, such as "quick/instance.yaml", in order."""
    return sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def nearest_config(path: str | Path) -> str:
    """ "; nearest: a, b" for the end of an error about a config that is nowhere, or ""."""
    return nearest(str(path), config_names())

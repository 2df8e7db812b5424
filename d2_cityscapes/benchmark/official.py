"""cityscapesscripts, the official tools: only their own numbers need them.

They are older than the numpy and Pillow of today. What they cannot do there is one line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import package_versions

__all__ = ["OfficialToolsError", "official_tools"]

_WORKS_WITH = "'numpy<2.3' 'pillow<13'"  # all of version 2.3.0


class OfficialToolsError(D2CityscapesError):
    """cityscapesscripts is missing, or does not work with the versions at hand."""


@contextlib.contextmanager
def official_tools() -> Iterator[None]:
    """For a block that imports or calls nothing but cityscapesscripts, or what stands on it.

    Raises:
        OfficialToolsError: with what it raised, and the versions with which it works.
    """
    try:
        yield
    except Exception as error:
        found = package_versions()
        versions = ", ".join(
            f"{name} {found.get(name) or 'missing'}"
            for name in ("cityscapesscripts", "numpy", "pillow")
        )
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise OfficialToolsError(
            f"the official tools fail here ({versions}): {reason}; for their numbers: "
            f"pip install cityscapesscripts {_WORKS_WITH}"
        ) from error

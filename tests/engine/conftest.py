"""What the package logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


class Log(logging.Handler):
    """What the package logs, whatever Detectron2 does to its loggers."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(f"{record.levelname} {record.getMessage()}")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def log() -> Iterator[Log]:
    logger, handler = logging.getLogger("d2_cityscapes"), Log()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)

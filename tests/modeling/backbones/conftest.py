"""Networks of timm that are small, with random weights; no test of this room may open a socket."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from detectron2.config import CfgNode

import d2_cityscapes as d2c

pytest.importorskip("timm")


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args, **_kwargs):
        raise AssertionError("a socket is opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def timm_cfg() -> Callable[..., CfgNode]:
    """(name, KEY=value of MODEL.TIMM) -> a config at its defaults; levels have 16 channels."""

    def make(name: str, **values) -> CfgNode:
        cfg = d2c.get_cfg()
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.FPN.OUT_CHANNELS = 16
        cfg.MODEL.TIMM.NAME = name
        for key, value in values.items():
            cfg.MODEL.TIMM[key] = value
        return cfg

    return make

"""Searches that train nothing: a cheap process, or none, in place of a trial's."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import yaml

from d2_cityscapes.search.space.plan import SearchPlan
from d2_cityscapes.search.space.plan_file import read_plan
from d2_cityscapes.search.trials.folders import read_job
from d2_cityscapes.search.trials.process import Outcome, TrialProcess

SEARCH = {
    "space": {
        "MODEL.RPN.IOU_THRESHOLDS[0]": {"type": "float", "low": 0.1, "high": 0.4},
        "MODEL.RPN.IOU_THRESHOLDS[1]": {"type": "float", "low": 0.3, "high": 0.9},
        "SOLVER.BASE_LR": {"type": "log", "low": 1e-4, "high": 1e-2},
        "MODEL.FREEZE.MODULES": {
            "type": "categorical",
            "choices": [["backbone"], ["backbone.bottom_up"]],
        },
    },
    "constraints": ["MODEL.RPN.IOU_THRESHOLDS[0] < MODEL.RPN.IOU_THRESHOLDS[1]"],
    "objective": {"dataset": "cityscapes_shards_val_1", "task": "segm", "metric": "AP"},
    "budget": {"iterations": 4, "reports": 4},
}


@pytest.fixture
def write_search(repository, tmp_path) -> Callable[..., Path]:
    """Write search.yaml: `SEARCH` over the demo's stage 3, with other sections as given."""

    def write(**sections) -> Path:
        path = tmp_path / "search.yaml"
        base = str(repository / "configs/demo/stage3.yaml")
        path.write_text(yaml.safe_dump({"base": base} | SEARCH | sections))
        return path

    return write


# 64 x 128 input, two images a step, a few small proposals, no worker processes.
TINY = {
    "MODEL.FROM_SCRATCH": True, "INPUT.MIN_SIZE_TRAIN": [64], "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 64, "INPUT.MAX_SIZE_TEST": 128,
    "SOLVER.IMS_PER_BATCH": 2, "SOLVER.WARMUP_ITERS": 0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50, "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32, "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator", "DATALOADER.NUM_WORKERS": 0,
}  # fmt: skip


@pytest.fixture
def write_tiny(write_search) -> Callable[..., Path]:
    """`write_search` for a model that trains in no time."""

    def write(**sections) -> Path:
        overrides = {k: v for k, v in TINY.items() if k not in sections.get("space", {})}
        return write_search(overrides=overrides, **sections)

    return write


@pytest.fixture
def plan(write_search) -> SearchPlan:
    return read_plan(write_search())


class FakeProcess:
    """A trial without a process: ``score(values)``, reported at each step as value * step / 4."""

    def __init__(self, score: Callable[[Mapping], float], folder: Path, environment: Mapping):
        self.job, self.score = read_job(folder), score

    def wait(self, report) -> Outcome:
        try:
            value = self.score(self.job.values)
        except RuntimeError as error:
            return Outcome("failed", reason=str(error))
        for step in (1, 2, 3):
            if json.loads(json.dumps(report(step, value * step / 4))):  # as it reaches a real one
                return Outcome("pruned")
        report(4, value)
        return Outcome("complete", value, results={"segm AP": value})

    def kill(self) -> None: ...


@pytest.fixture
def fake() -> Callable:
    """Score of values -> what starts such a trial."""
    return lambda score: partial(FakeProcess, score)


@pytest.fixture
def cheap_trial() -> Callable:
    """Starts real processes that train nothing: cheap_trial.py says what they do."""
    return partial(TrialProcess, [sys.executable, str(Path(__file__).with_name("cheap_trial.py"))])


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory) -> Iterator[str]:
    """Address of an empty database on a PostgreSQL server of our own."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    initdb = shutil.which("initdb") or next((str(p / "initdb") for p in installed[-1:]), None)
    if initdb is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    bin_folder = Path(initdb).resolve().parent
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/pg.XXXXXX"], text=True).strip())
    # PostgreSQL does not run as root.
    user = {}
    if _is_root():
        shutil.chown(folder, "nobody")
        user = {"user": "nobody", "cwd": "/"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    subprocess.run(
        [bin_folder / "initdb", "-D", data, "-U", "search", "-A", "trust", "--no-sync"],
        check=True, capture_output=True, **user,
    )  # fmt: skip
    server = subprocess.Popen(
        [bin_folder / "postgres", "-D", data, "-p", str(port), "-k", folder, "-F"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user,
    )  # fmt: skip
    try:
        _wait_for(port)
        yield f"postgresql://search@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # without waiting for clients
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _is_root() -> bool:
    import os

    return hasattr(os, "geteuid") and os.geteuid() == 0


def _wait_for(port: int) -> None:
    import psycopg2

    for _ in range(100):
        try:
            psycopg2.connect(host="127.0.0.1", port=port, user="search", dbname="postgres").close()
            return
        except psycopg2.OperationalError:
            time.sleep(0.1)
    raise TimeoutError("PostgreSQL did not start")

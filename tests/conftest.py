"""What tests of several rooms share: small scenes and shards, random id maps, commands."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Small tensors: more threads only fight each other, spinning ones most of all. Set before torch is
# imported.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import real_gpu
from fake_cuda import FakeCuda
from hypothesis import settings

from d2_cityscapes.shards.writer import write_shards

# A busy machine is no failure. Hypothesis' own limit is 200 ms an example.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

REPOSITORY = Path(__file__).resolve().parents[1]


# stuff, void, instances of six classes, group regions, an instance of a class that is not evaluated
_IDS = (
    7,
    8,
    11,
    21,
    23,
    0,
    1,
    24000,
    24001,
    25000,
    26000,
    26001,
    28000,
    32000,
    33000,
    24,
    26,
    29000,
)


@dataclass(frozen=True)
class ArraySource:
    """A source for shards that lives in memory."""

    file_name: str
    pixels: np.ndarray  # (H, W, 3) uint8
    ids: np.ndarray  # (H, W)

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[:2]

    @property
    def fingerprint(self) -> str:
        return str(int(self.pixels.sum()) + int(self.ids.sum()))

    def image(self) -> np.ndarray:
        return self.pixels

    def instance_ids(self) -> np.ndarray:
        return self.ids


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fake-gpu", action="store_true", help="run the tests as on a machine with a CUDA GPU"
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """The pretended GPU, once the tests have imported what reads the true torch."""
    if session.config.getoption("--fake-gpu"):
        gpu = _fake_cuda()
        session.config.add_cleanup(lambda: gpu.__exit__(None, None, None))
        gpu.__enter__()
    # what is imported and collected stays: no collection has to look at it again
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    fake = item.config.getoption("--fake-gpu")
    for marker in item.iter_markers("no_fake_gpu"):
        if fake:
            pytest.skip(f"the pretended GPU cannot do this: {marker.args[0]}")
    if item.get_closest_marker("gpu") and not (fake or real_gpu.FOUND):
        pytest.skip("no GPU here; --fake-gpu pretends one")


@pytest.fixture(scope="session", autouse=True)
def gpu_hidden() -> Iterator[None]:
    """A real GPU is for the tests marked `gpu`."""
    with real_gpu.hidden():
        yield


@pytest.fixture(autouse=True)
def gpu_shown(request: pytest.FixtureRequest) -> Iterator[None]:
    marked = request.node.get_closest_marker("gpu")
    fake = request.config.getoption("--fake-gpu")
    with real_gpu.shown() if marked and not fake else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Take away what a training set up: its handlers write to files that do not outlive a test."""
    loggers = [logging.getLogger(name) for name in ("d2_cityscapes", "detectron2", "fvcore")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout, for tests that run the commands."""
    return REPOSITORY


@pytest.fixture(scope="session")
def array_source() -> type[ArraySource]:
    return ArraySource


@pytest.fixture(scope="session")
def cityscapes_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a synthetic Cityscapes tree of 64x128 scenes: 8 train, 8 val."""
    from d2_cityscapes.synthetic.dataset import make_tree

    root = tmp_path_factory.mktemp("cityscapes")
    make_tree(root, train=8, val=8, height=64, width=128, seed=7)
    return root


@pytest.fixture(scope="session")
def datasets_root(cityscapes_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DETECTRON2_DATASETS folder with the shards of `cityscapes_tree`: 8 + 4 partitions."""
    from d2_cityscapes.sources.cityscapes import DEFAULT_PARTITIONS, find_sources

    root = tmp_path_factory.mktemp("datasets")
    for split in ("train", "val"):
        sources = find_sources(cityscapes_tree, split)
        output = root / "cityscapes_shards"
        write_shards(sources, output, split=split, partitions=DEFAULT_PARTITIONS[split])
    return root


@pytest.fixture
def datasets(datasets_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`datasets_root`, with the environment pointing at it."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))
    return datasets_root


@pytest.fixture
def disk_of():
    """(bytes) -> a block in which no file can grow beyond that many, as on a full disk."""

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def call(repository, monkeypatch, capsys):
    """Run a command in this process; returns exit code, stdout and stderr."""

    def run(command, *arguments):
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(str(repository / command), run_name="__main__")
        return leaving.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def fake_gpu() -> Iterator[FakeCuda]:
    """A pretended CUDA device for the time of the test."""
    with _fake_cuda() as gpu:
        yield gpu


def _fake_cuda() -> FakeCuda:
    """Not entered, but all that reads the true torch is imported: torch.jit.script does."""
    pytest.importorskip("detectron2")
    import d2_cityscapes.engine.prediction.run
    import d2_cityscapes.engine.trainer  # noqa: F401

    return FakeCuda()


@pytest.fixture(scope="session")
def tiny_opts() -> list[str]:
    """64 x 128 input, two images a step, a few small proposals, no worker processes."""
    return [
        "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "128",
        "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128",
        "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "0",
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "50",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
        "DATALOADER.NUM_WORKERS", "0", "TEST.NUM_PICTURES", "1",
        "TEST.EXPECTED_RESULTS", "[]", "MODEL.FROM_SCRATCH", "True",
    ]  # fmt: skip


def _paint(seed: int, size: tuple[int, int] = (48, 96), shapes: int = 14) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.full(size, rng.choice(_IDS), dtype=np.int32)
    for instance_id in rng.choice(_IDS, shapes):
        height, width = rng.integers(2, size[0] // 2), rng.integers(2, size[1] // 2)
        top, left = rng.integers(0, size[0] - height), rng.integers(0, size[1] - width)
        ids[top : top + height, left : left + width] = instance_id
    return ids


def _disturb(ids: np.ndarray, seed: int) -> np.ndarray:
    """A prediction for a map: moved by some pixels, partly repainted."""
    rng = np.random.default_rng(seed)
    moved = np.roll(ids, rng.integers(-3, 4, size=2), axis=(0, 1))
    other = _paint(seed + 1, ids.shape)
    return np.where(_paint(seed + 2, ids.shape) > 28500, other, moved)


@pytest.fixture(scope="session")
def paint() -> Callable[..., np.ndarray]:
    """(seed, size, shapes) -> (H, W) int32 instance ids."""
    return _paint


@pytest.fixture(scope="session")
def disturb() -> Callable[[np.ndarray, int], np.ndarray]:
    """(ids, seed) -> a prediction for them."""
    return _disturb

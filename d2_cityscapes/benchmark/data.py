"""Shards beside Detectron2's own loading of the PNG tree they were made of.

Both sides get the same images, augmentation, batch size and number of workers. Whatever starts a
loader runs in a fresh process, in which everything has been imported before the clock starts.
"""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
)

from d2_cityscapes.benchmark.augmentation import compare_augmentation
from d2_cityscapes.benchmark.comparison import (
    Comparison,
    compare,
    one_thread,
    reported,
    time_in_turn,
)
from d2_cityscapes.benchmark.stock_tree import STOCK, mask_format
from d2_cityscapes.config import get_cfg
from d2_cityscapes.data.loader import build_train_loader
from d2_cityscapes.data.mapper import CityscapesShardMapper
from d2_cityscapes.data.register import load_shards, register_cityscapes_shards
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.shards.reader import ShardReader
from d2_cityscapes.sources.names import ANNOTATIONS, IMAGE_FOLDER

try:
    import psutil
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances
except ImportError as _error:  # cv2 and shapely are imported by Detectron2 when it uses them
    raise D2CityscapesError(
        f"benchmark data: {_error}; run `pip install opencv-python-headless psutil shapely`"
    ) from _error

__all__ = ["DataBenchmark", "benchmark_data"]

BATCH_SIZE = 4
_NAME = "benchmark_data"


@dataclass(frozen=True)
class DataBenchmark:
    """What is compared.

    Attributes:
        cityscapes: root of the PNG tree.
        shards: folder of the shards made of it.
        stock: which of `STOCK` to compare with.
        split: "train" or "val".
        workers: loader processes.
        rounds: how often each contender runs; medians are reported.
        batches: batches per loader for the throughput.
    """

    cityscapes: Path
    shards: Path
    stock: Sequence[str] = tuple(STOCK)
    split: str = "train"
    workers: int = 2
    rounds: int = 3
    batches: int = 24


def benchmark_data(
    settings: DataBenchmark, *, report: Callable[[Sequence[Comparison]], None]
) -> list[Comparison]:
    """Run all comparisons; ``report`` gets each group of them as soon as it is measured."""
    measures = (_listing, _mapping, _augmentation, _reading, _loading, _memory)
    return reported((measure(settings) for measure in measures), report)


def _listing(settings: DataBenchmark) -> list[Comparison]:
    images = len(ShardReader(settings.shards, split=settings.split))
    peers = {
        f"load_cityscapes_instances, {name}": partial(
            _load_stock, settings.cityscapes, settings.split, name
        )
        for name in settings.stock
    }
    ours = partial(load_shards, settings.shards, split=settings.split)
    seconds = time_in_turn({"ours": ours} | peers, rounds=settings.rounds)
    per_image = {name: 1000 * value / images for name, value in seconds.items()}
    return compare(
        f"listing {images} images with boxes and classes", "ms/image", per_image.pop("ours"),
        per_image,
    )  # fmt: skip


def _mapping(settings: DataBenchmark) -> list[Comparison]:
    sample = slice(0, 24)
    dicts = load_shards(settings.shards, split=settings.split)[sample]
    cfg = _config(settings)
    contenders = {"ours": (CityscapesShardMapper(cfg, True), dicts)}
    files = {d["file_name"] for d in dicts}
    for name in settings.stock:
        cfg.INPUT.MASK_FORMAT = mask_format(name)
        stock = _load_stock(settings.cityscapes, settings.split, name)
        stock = [d for d in stock if Path(d["file_name"]).name in files]
        contenders[f"DatasetMapper, {name}"] = (DatasetMapper(cfg, True), stock)

    def run(mapper: Callable[[dict], dict], images: list[dict]) -> None:
        np.random.seed(0)  # the same sizes and flips for everyone
        for image in images:
            mapper(image)

    with one_thread():
        seconds = time_in_turn(
            {name: partial(run, *of) for name, of in contenders.items()},
            rounds=settings.rounds + 4,
        )
    per_image = {name: 1000 * value / len(dicts) for name, value in seconds.items()}
    return compare("mapper, one process", "ms/image", per_image.pop("ours"), per_image)


def _augmentation(settings: DataBenchmark) -> list[Comparison]:
    dicts = load_shards(settings.shards, split=settings.split)[:24]
    return compare_augmentation(_config(settings), dicts, rounds=settings.rounds + 4)


def _reading(settings: DataBenchmark) -> list[Comparison]:
    reader = ShardReader(settings.shards, split=settings.split)
    record = reader[0]
    source = record.image.numpy(), record.instance_ids.numpy()
    target = tuple(np.empty_like(part) for part in source)

    def copy() -> None:
        for part, room in zip(source, target, strict=True):
            np.copyto(room, part)

    contenders: dict[str, Callable[[], Any]] = {"ours": lambda: reader[0], "memcpy": copy}
    with one_thread():
        seconds = time_in_turn(contenders, rounds=100)
    return compare(
        "record, image and ids, warm", "ms", 1000 * seconds["ours"],
        {"memcpy of the same bytes": 1000 * seconds["memcpy"]},
    )  # fmt: skip


def _loading(settings: DataBenchmark) -> list[Comparison]:
    first: dict[str, list[float]] = {name: [] for name in ("ours", *settings.stock)}
    rate: dict[str, list[float]] = {name: [] for name in first}
    for _ in range(settings.rounds):
        for name in first:
            seconds, images_per_second = _in_fresh_process(_run_loader, settings, name)
            first[name].append(seconds)
            rate[name].append(images_per_second)
    workers = f"{settings.workers} workers"
    medians = {f"stock, {name}": statistics.median(first[name]) for name in settings.stock}
    found = compare(
        f"imports done to first batch, {workers}", "s", statistics.median(first["ours"]), medians
    )
    medians = {f"stock, {name}": statistics.median(rate[name]) for name in settings.stock}
    return found + compare(
        f"throughput, {workers}", "images/s", statistics.median(rate["ours"]), medians,
        higher_is_better=True,
    )  # fmt: skip


def _memory(settings: DataBenchmark) -> list[Comparison]:
    used = {
        name: _in_fresh_process(_measure_memory, settings, name)
        for name in ("ours", *settings.stock)
    }
    found = []
    for i, what in enumerate(("peak RSS of all processes", "memory added (PSS)")):
        found += compare(
            f"{what}, 1 worker, one epoch", "MB", used["ours"][i],
            {f"stock, {name}": used[name][i] for name in settings.stock},
        )  # fmt: skip
    return found


def _run_loader(settings: DataBenchmark, name: str) -> tuple[float, float]:
    """Seconds to the first batch, and images per second after it."""
    started = time.perf_counter()
    batches = iter(_loader(settings, name, settings.workers))
    next(batches)
    first = time.perf_counter()
    for _ in range(settings.batches):
        next(batches)
    rate = settings.batches * BATCH_SIZE / (time.perf_counter() - first)
    return first - started, rate


def _measure_memory(settings: DataBenchmark, name: str) -> tuple[float, float]:
    """Peak RSS, and peak PSS above that before, in MB, over one epoch."""
    images = len(ShardReader(settings.shards, split=settings.split))
    before = _usage()[1]
    done = threading.Event()
    peaks = [0.0, 0.0]

    def watch() -> None:
        while not done.wait(0.05):
            peaks[:] = (max(pair) for pair in zip(peaks, _usage(), strict=True))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    batches = iter(_loader(settings, name, 1))
    for _ in range(images // BATCH_SIZE):
        next(batches)
    done.set()
    watcher.join()
    return peaks[0], peaks[1] - before


def _usage() -> tuple[float, float]:
    """RSS, and PSS (shared pages counted once), of this process and its children in MB."""
    this = psutil.Process()
    total = [0, 0]
    for process in (this, *this.children(recursive=True)):
        try:
            memory = process.memory_full_info()
        except psutil.Error:
            continue  # ended meanwhile
        total[0] += memory.rss
        total[1] += memory.pss
    return total[0] / 1e6, total[1] / 1e6


def _loader(settings: DataBenchmark, name: str, workers: int) -> Iterable[list[dict]]:
    cfg = _config(settings)
    cfg.DATALOADER.NUM_WORKERS = workers
    if name == "ours":
        register_cityscapes_shards(_NAME, settings.shards, split=settings.split)
        return build_train_loader(cfg)
    cfg.INPUT.MASK_FORMAT = mask_format(name)
    DatasetCatalog.register(_NAME, partial(_load_stock, settings.cityscapes, settings.split, name))
    MetadataCatalog.get(_NAME).set(thing_classes=[c.name for c in CITYSCAPES.things])
    return build_detection_train_loader(cfg)


def _config(settings: DataBenchmark) -> CfgNode:
    """Detectron2's Cityscapes augmentation: short edge 800 to 1024 of 1024, and flips."""
    height, width = ShardReader(settings.shards, split=settings.split).image_size(0)
    cfg = get_cfg()
    cfg.SEED = 1
    cfg.DATASETS.TRAIN = (_NAME,)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.SOLVER.IMS_PER_BATCH = BATCH_SIZE
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = tuple(height * k // 32 for k in range(25, 33))
    cfg.INPUT.MAX_SIZE_TRAIN = width
    return cfg


def _load_stock(cityscapes: Path, split: str, name: str) -> list[dict]:
    """Dataset dicts of a PNG tree, read by Detectron2 in one of the ways of `STOCK`."""
    folders = (cityscapes / part / split for part in (IMAGE_FOLDER, ANNOTATIONS[split]))
    try:
        return load_cityscapes_instances(*map(str, folders), **STOCK[name])
    except ModuleNotFoundError as error:
        raise D2CityscapesError(
            f"benchmark data: Detectron2's Cityscapes loader ends with {error}: it needs "
            "Detectron2 0.6 (that of main does not run outside of Meta); the modes train, minidl "
            "and fusion work with both"
        ) from error


def _fork_workers() -> None:
    multiprocessing.set_start_method("fork", force=True)


def _in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    # started anew, but forking its own workers, as a training does: a spawned process would spawn
    pool = ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_fork_workers,
    )
    with pool:
        return pool.submit(function, *arguments).result()

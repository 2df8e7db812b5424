"""Our scoring beside that of cityscapesscripts and of Detectron2's evaluators.

All of it on one thread, but the commands that score files: they run as users run them, with their
startup, on all cores.

Predictions are the truth with noise: moved by some pixels, one in ten of another class. Both sides
score the same ones; equality of the numbers is what the tests are for.

Shape letters: N predicted instances, H, W pixels.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image

from d2_cityscapes.benchmark.comparison import (
    Comparison,
    compare,
    one_thread,
    reported,
    time_in_turn,
)
from d2_cityscapes.benchmark.official import OfficialToolsError, official_tools
from d2_cityscapes.data.register import register_cityscapes_shards
from d2_cityscapes.evaluation.evaluators import CityscapesInstanceEvaluator, InstanceEvaluator
from d2_cityscapes.evaluation.instances.coco_matching import true_objects
from d2_cityscapes.evaluation.panoptic.quality import PanopticQuality
from d2_cityscapes.labels import CITYSCAPES, INSTANCE_DIVISOR
from d2_cityscapes.labels.instances import find_instances
from d2_cityscapes.shards.writer import write_shards
from d2_cityscapes.sources.cityscapes import find_sources

__all__ = ["EvaluationBenchmark", "benchmark_evaluation"]

_NAME = "benchmark_evaluation"
_MASKS = 100  # instances predicted in one image


@dataclass(frozen=True)
class EvaluationBenchmark:
    """What is compared.

    Attributes:
        cityscapes: root of a PNG tree in the official layout.
        split: "train" or "val".
        images: how many of the split are scored.
        rounds: how often each contender runs; medians are reported.
    """

    cityscapes: Path
    split: str = "val"
    images: int = 16
    rounds: int = 5


def benchmark_evaluation(
    settings: EvaluationBenchmark, *, report: Callable[[Sequence[Comparison]], None]
) -> list[Comparison]:
    """Run all comparisons; ``report`` gets each group of them as soon as it is measured."""
    with tempfile.TemporaryDirectory() as folder, one_thread():
        measures = (_panoptic, _instances)
        return reported((measure(settings, Path(folder)) for measure in measures), report)


def _panoptic(settings: EvaluationBenchmark, folder: Path) -> list[Comparison]:
    with official_tools():
        from cityscapesscripts.evaluation.evalPanopticSemanticLabeling import pq_compute_single_core
        from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
    split, rng = settings.split, np.random.default_rng(0)
    truth, predicted, names = folder / "truth" / split, folder / "predicted" / split, []
    maps = []
    for source in find_sources(settings.cityscapes, split)[: settings.images]:
        assert source.ids_path is not None  # of a split with annotations
        names.append(source.ids_path.name)
        city = source.ids_path.parent.name
        true_ids = source.instance_ids().astype(np.uint16)
        predicted_ids = _noisy_map(true_ids, rng)
        for place, ids in ((truth, true_ids), (predicted, predicted_ids)):
            (place / city).mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(place / city / names[-1])
        maps.append((predicted_ids.astype(np.int32), true_ids))

    started = time.perf_counter()
    for place in (truth, predicted):
        (place.parent / "coco").mkdir()
        with _silence(), official_tools():
            convert2panoptic(str(place.parent), str(place.parent / "coco"), False, [split])
    converting = time.perf_counter() - started
    documents = [
        json.loads((place.parent / "coco" / f"cityscapes_panoptic_{split}.json").read_text())
        for place in (truth, predicted)
    ]
    pairs = list(zip(*(document["annotations"] for document in documents), strict=True))
    categories = {c["id"]: c for c in documents[0]["categories"]}

    def official() -> None:
        pngs = [str(p.parent / "coco" / f"cityscapes_panoptic_{split}") for p in (truth, predicted)]
        with _silence(), official_tools():
            pq_compute_single_core(0, pairs, *pngs, categories)

    def update() -> None:
        quality = PanopticQuality()
        for pair in maps:
            quality.update(*pair)

    def one_pass() -> None:
        for pair in maps:
            for ids in pair:
                ids.sum()

    command, official_command = _panoptic_commands(settings, truth, predicted, folder)
    seconds = time_in_turn(
        {
            "official": official,
            "update": update,
            "pass": one_pass,
            "command": command,
            "official command": official_command,
        },
        rounds=settings.rounds,
    )
    per_image = {name: 1000 * value / len(maps) for name, value in seconds.items()}
    peer = "csEvalPanopticSemanticLabeling"
    # One process converts both folders, as the official command does.
    with_conversion = per_image["official command"] + 1000 * converting / len(maps)
    return [
        *compare(
            "PanopticQuality.update, maps in memory", "ms/image", per_image["update"],
            {
                "cityscapesscripts, one core": per_image["official"],
                "one pass over both maps": per_image["pass"],
            },
        ),
        *compare(
            "evaluate_panoptic.py on PNGs, all cores", "ms/image", per_image["command"],
            {
                f"{peer}, from panoptic PNGs": per_image["official command"],
                f"{peer}, with createPanopticImgs": with_conversion,
            },
        ),
    ]  # fmt: skip


def _panoptic_commands(
    settings: EvaluationBenchmark, truth: Path, predicted: Path, folder: Path
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Our command and the official one, each in processes of its own."""
    run = partial(
        subprocess.run, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    ours = [sys.executable, "-m", "d2c", "evaluate"]
    ours += ["--truth", str(truth), "--prediction", str(predicted)]
    official = [sys.executable, "-m", "cityscapesscripts.evaluation.evalPanopticSemanticLabeling"]
    for role, place in (("gt", truth), ("prediction", predicted)):
        pngs = place.parent / "coco" / f"cityscapes_panoptic_{settings.split}"
        official += [f"--{role}-folder", str(pngs), f"--{role}-json-file", f"{pngs}.json"]

    def official_command() -> None:
        with official_tools():
            run([*official, "--results_file", "official.json"])

    return lambda: run([*ours, "--output", "ours.json"]), official_command


def _instances(settings: EvaluationBenchmark, folder: Path) -> list[Comparison]:
    source = find_sources(settings.cityscapes, settings.split)[0]
    ids = source.instance_ids().astype(np.int32)
    found = _noisy_instances(ids, np.random.default_rng(0))
    write_shards([source], folder / "shards", split=settings.split)
    register_cityscapes_shards(_NAME, folder / "shards", split=settings.split)
    (ours,) = DatasetCatalog.get(_NAME)
    theirs = {"image_id": 0, "file_name": source.file_name}

    coco, city = _as_coco(ids, folder / "coco.json"), folder / "city"
    city.mkdir()
    assert source.ids_path is not None
    shutil.copy(source.ids_path, city)
    things = [c.name for c in CITYSCAPES.things]
    MetadataCatalog.get(f"{_NAME}_coco").set(
        json_file=str(coco),
        thing_classes=things,
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(things))},
    )
    MetadataCatalog.get(f"{_NAME}_city").set(gt_dir=str(folder), thing_classes=things)
    output = {"instances": found}

    def run(evaluator: DatasetEvaluator, image: dict, guard: Any = contextlib.nullcontext) -> Any:
        with _silence(), guard():
            evaluator.reset()
            evaluator.process([image], [output])
            return evaluator.evaluate()

    comparisons = []
    for measure, own, peer, stock, guard in (
        (
            "COCO segm AP",
            InstanceEvaluator(_NAME, ["segm"]),
            "Detectron2's COCOEvaluator",
            COCOEvaluator(f"{_NAME}_coco", tasks=("segm",), use_fast_impl=False, distributed=False),
            contextlib.nullcontext,
        ),
        (
            "Cityscapes AP",
            CityscapesInstanceEvaluator(_NAME, ["segm_cityscapes"]),
            "Detectron2's CityscapesInstanceEvaluator",
            _stock_cityscapes_evaluator(f"{_NAME}_city"),
            official_tools,
        ),
    ):
        contenders = {"ours": partial(run, own, ours), peer: partial(run, stock, theirs, guard)}
        failure = ""
        try:
            contenders[peer]()
        except OfficialToolsError as error:
            failure = str(error)
            del contenders[peer]
        seconds = time_in_turn(contenders, rounds=settings.rounds)
        comparisons += compare(
            f"{measure}, one image, {_MASKS} masks", "ms", 1000 * seconds["ours"],
            {peer: failure or 1000 * seconds[peer]},
        )  # fmt: skip
    return comparisons


def _noisy_map(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W) uint16 ids moved by up to 6 pixels, one instance in ten of another class.

    Group regions become void, as nothing predicts them.
    """
    noisy = np.roll(ids, rng.integers(-6, 7, 2), axis=(0, 1))
    table = find_instances(noisy, CITYSCAPES)
    lookup = np.arange(int(ids.max()) + INSTANCE_DIVISOR + 1, dtype=np.uint16)
    labels = CITYSCAPES.label_id_of_thing
    for number, segment in enumerate(table.ids):
        if segment < INSTANCE_DIVISOR:
            lookup[segment] = 0
        elif rng.random() < 0.1:
            lookup[segment] = rng.choice(labels) * INSTANCE_DIVISOR + 500 + number
    return lookup[noisy]


def _noisy_instances(ids: np.ndarray, rng: np.random.Generator) -> Instances:
    """A hundred predictions in an (H, W) map: true shapes at places near and far."""
    height, width = ids.shape
    true = find_instances(ids, CITYSCAPES)
    true = true.select(~true.crowd)
    masks = np.zeros((_MASKS, height, width), dtype=bool)
    classes, boxes = np.zeros(_MASKS, dtype=np.int64), np.zeros((_MASKS, 4), dtype=np.float32)
    for k, mask in enumerate(masks):
        i = rng.integers(len(true))
        x0, y0, x1, y1 = true.boxes[i]
        reach = 7 if k < 40 else 61
        left = np.clip(x0 + rng.integers(1 - reach, reach), 0, width - (x1 - x0))
        top = np.clip(y0 + rng.integers(1 - reach, reach), 0, height - (y1 - y0))
        mask[top : top + y1 - y0, left : left + x1 - x0] = ids[y0:y1, x0:x1] == true.ids[i]
        boxes[k] = left, top, left + x1 - x0, top + y1 - y0
        other = rng.random() < 0.1
        classes[k] = rng.integers(8) if other else CITYSCAPES.thing_id_of_train[true.classes[i]]
    return Instances(
        (height, width),
        pred_boxes=Boxes(torch.from_numpy(boxes)),
        pred_classes=torch.from_numpy(classes),
        scores=torch.from_numpy(rng.uniform(0.05, 1, _MASKS).astype(np.float32)),
        pred_masks=torch.from_numpy(masks),
    )


def _as_coco(ids: np.ndarray, path: Path) -> Path:
    """Write the instances of an (H, W) map as COCO annotations."""
    found = find_instances(ids, CITYSCAPES)
    objects = true_objects(found, ids, CITYSCAPES)
    assert objects.masks is not None
    annotations = [
        {
            "id": k + 1,
            "image_id": 0,
            "category_id": int(objects.thing_ids[k]) + 1,
            "bbox": [float(v) for v in (x0, y0, x1 - x0, y1 - y0)],
            "area": int(found.areas[k]),
            "iscrowd": int(objects.crowd[k]),
            "segmentation": {
                "size": list(ids.shape),
                "counts": objects.masks[k]["counts"].decode(),
            },
        }
        for k, (x0, y0, x1, y1) in enumerate(found.boxes)
    ]
    document = {
        "info": {},
        "images": [{"id": 0, "height": ids.shape[0], "width": ids.shape[1]}],
        "categories": [{"id": i + 1, "name": c.name} for i, c in enumerate(CITYSCAPES.things)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(document))
    return path


def _stock_cityscapes_evaluator(name: str) -> DatasetEvaluator:
    from detectron2.evaluation import CityscapesInstanceEvaluator as Stock

    return Stock(name)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the peers' printing and logging, and with the files that they drop put away."""
    before = os.getcwd()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            os.chdir(before)
            logging.disable(logging.NOTSET)

"""The evaluators on small shards: official numbers, subsets, ranks, and Detectron2's own tools."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import print_csv_format, verify_results
from detectron2.structures import Boxes, Instances
from PIL import Image

from d2_cityscapes.config import get_cfg, model_tasks
from d2_cityscapes.data.register import register_cityscapes_shards
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.trainer import Trainer
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.evaluators import (
    CityscapesInstanceEvaluator,
    InstanceEvaluator,
    PanopticEvaluator,
    SemSegEvaluator,
    ShardEvaluators,
    build_evaluator,
)
from d2_cityscapes.evaluation.expected import check_expected
from d2_cityscapes.evaluation.panoptic.quality import InvalidMapError, PanopticQuality
from d2_cityscapes.evaluation.results import read_results
from d2_cityscapes.evaluation.semantic.scores import SemSegQuality
from d2_cityscapes.evaluation.shard_evaluator import output_on_cpu
from d2_cityscapes.evaluation.submission.writer import PanopticSubmissionWriter
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.instances import find_instances
from d2_cityscapes.shards.reader import open_shard
from d2_cityscapes.shards.writer import write_shards

NAME = "evaluator_scenes"
SIZE = (64, 128)
TASKS = ("bbox", "segm", "segm_cityscapes", "sem_seg", "panoptic_seg")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, array_source, paint: Callable) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    sources = [
        array_source(
            f"town_000000_{i:06d}_leftImg8bit.png",
            rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
            paint(i, SIZE, 20),
        )
        for i in range(7)
    ]
    write_shards(sources, folder, split="val", partitions=2)
    return folder


@pytest.fixture(scope="module")
def inputs(shards: Path):
    register_cityscapes_shards(NAME, shards, split="val")
    yield DatasetCatalog.get(NAME)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def true_ids(image: dict) -> np.ndarray:
    return open_shard(image["shard"]).instance_ids(image["index"]).numpy()


def as_output(ids: np.ndarray, seed: int) -> dict:
    """What a model would return that sees these instance ids, but for groups, in all forms."""
    rng = np.random.default_rng(seed)
    found = find_instances(ids, CITYSCAPES)
    found = found.select(~found.crowd)
    instances = Instances(ids.shape)
    instances.pred_boxes = Boxes(torch.from_numpy(found.boxes.astype(np.float32)))
    instances.pred_classes = torch.from_numpy(CITYSCAPES.thing_id_of_train[found.classes])
    instances.scores = torch.from_numpy(rng.uniform(0.5, 1, len(found)))
    instances.pred_masks = torch.from_numpy(ids[None] == found.ids[:, None, None])

    classes = CITYSCAPES.train_id_of[ids].astype(np.int64)
    classes = np.where(classes == 255, 0, classes)
    scores = torch.nn.functional.one_hot(torch.from_numpy(classes), 19).permute(2, 0, 1).float()

    panoptic, info = np.zeros(ids.shape, np.int32), []
    for value in np.unique(ids).tolist():
        train_id = int(CITYSCAPES.train_id_of[value])
        thing = train_id < 255 and CITYSCAPES.classes[train_id].is_thing
        if train_id < 255 and not (thing and value < 1000):
            info.append({"id": len(info) + 1, "category_id": train_id, "isthing": thing})
            panoptic[ids == value] = len(info)
    return {
        "instances": instances,
        "sem_seg": scores,
        "panoptic_seg": (torch.from_numpy(panoptic), info),
    }


def perfect(inputs: list[dict]) -> list[dict]:
    return [as_output(true_ids(image), i) for i, image in enumerate(inputs)]


@pytest.fixture(scope="module")
def outputs(inputs: list[dict], disturb: Callable) -> list[dict]:
    return [as_output(disturb(true_ids(image), i), i) for i, image in enumerate(inputs)]


def all_evaluators() -> ShardEvaluators:
    return ShardEvaluators(
        [
            InstanceEvaluator(NAME, ["bbox", "segm"]),
            CityscapesInstanceEvaluator(NAME, ["segm_cityscapes"]),
            SemSegEvaluator(NAME, ["sem_seg"]),
            PanopticEvaluator(NAME, ["panoptic_seg"]),
        ]
    )


def evaluate(inputs: list[dict], outputs: list[dict]) -> tuple[dict, ShardEvaluators]:
    evaluators = all_evaluators()
    evaluators.reset()
    for i in range(0, len(inputs), 2):
        evaluators.process(inputs[i : i + 2], outputs[i : i + 2])
    return evaluators.evaluate(), evaluators


def same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for task in a:
        assert a[task] == pytest.approx(b[task], abs=1e-9, rel=0, nan_ok=True)


def test_truth_scores_100(inputs: list[dict]) -> None:
    results, evaluators = evaluate(inputs, perfect(inputs))
    assert list(results) == list(TASKS)
    for task, metric in (
        ("bbox", "AP"), ("segm", "AP"), ("segm", "AR@100"), ("segm_cityscapes", "AP"),
        ("sem_seg", "mIoU"), ("sem_seg", "iIoU"), ("sem_seg", "iIoU_category"),
        ("panoptic_seg", "PQ"), ("panoptic_seg", "PQ_st"), ("panoptic_seg", "PQ_dagger"),
    ):  # fmt: skip
        assert results[task][metric] == pytest.approx(100), (task, metric)
    assert math.isnan(results["panoptic_seg"]["PQ-train"])
    assert {row.images for row in evaluators.rows} == {7}


def test_synthetic_scenes_through_the_builtin_dataset(datasets: Path, tmp_path: Path) -> None:
    name = "cityscapes_shards_val_report"
    inputs = DatasetCatalog.get(name)
    cfg = make_cfg("SeamlessPanoptic", NUM_PICTURES=1)
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = Trainer.build_evaluator(cfg, name)
    evaluator.process(inputs, perfect(inputs))
    results = evaluator.evaluate()
    for task, metric in (("segm", "AP"), ("panoptic_seg", "PQ"), ("panoptic_seg", "PQ_dagger")):
        assert results[task][metric] == pytest.approx(100), (task, metric)
    assert len(list((tmp_path / "pictures" / name).iterdir())) == 1


def on_gpu(outputs: list[dict]) -> list[dict]:
    def moved(output: dict) -> dict:
        panoptic, segments_info = output["panoptic_seg"]
        return {
            "instances": output["instances"].to("cuda"),
            "sem_seg": output["sem_seg"].cuda(),
            "panoptic_seg": (panoptic.cuda(), segments_info),
        }

    return [*map(moved, outputs)]


def test_what_a_gpu_predicts_is_copied_once(fake_gpu, inputs: list[dict], outputs: list[dict]):
    """Of masks what is in their boxes, though three evaluators score them."""
    expected, _ = evaluate(inputs, outputs)
    there = on_gpu(outputs)
    with fake_gpu.watch() as seen:
        found, _ = evaluate(inputs, there)
    same(found, expected)
    maps, objects = len(inputs) * SIZE[0] * SIZE[1], 0
    for output in outputs:
        objects += len(output["instances"])
        masks = output["instances"].pred_masks
        boxes = output["instances"].pred_boxes.tensor
        assert output_on_cpu({"instances": output["instances"]})["instances"].pred_masks is masks
        width, height = ((boxes[:, 2:] - boxes[:, :2]) + 4).unbind(dim=1)
        maps += int((width * height).sum())
    # (H, W) int32 panoptics and one byte of semantics; boxes, scores, classes, and where to cut
    assert seen.copied_out <= 5 * len(inputs) * SIZE[0] * SIZE[1] + maps + 100 * objects + 1000


@pytest.mark.parametrize("boxes", ["tight", "elsewhere", None])
def test_masks_come_whole_from_a_gpu(fake_gpu, boxes):
    """Also those that a model other than Detectron2's has drawn beside their boxes."""
    masks = torch.zeros(3, 20, 30, dtype=torch.bool)
    masks[0, 2:7, 5:9], masks[1, :, :] = True, True
    instances = Instances((20, 30), pred_masks=masks, scores=torch.rand(3))
    if boxes:
        tight = torch.tensor([[5.0, 2, 9, 7], [0, 0, 30, 20], [3, 3, 4, 4]])
        instances.pred_boxes = Boxes(tight if boxes == "tight" else tight / 4)
    found = output_on_cpu({"instances": instances.to("cuda"), "more": 1})
    assert found["more"] == 1
    assert not found["instances"].pred_masks.is_cuda
    assert found["instances"].pred_masks.equal(masks)
    assert found["instances"].scores.equal(instances.scores)


def test_rows_say_protocol_dataset_and_counts(inputs: list[dict], outputs: list[dict]) -> None:
    results, evaluators = evaluate(inputs, outputs)
    rows = {(row.task, row.metric): row for row in evaluators.rows}
    assert len(rows) == len(evaluators.rows) == sum(map(len, results.values()))
    assert {row.dataset for row in rows.values()} == {NAME}
    assert rows["segm", "AP"].protocol == "COCO"
    assert rows["segm", "AP"].classes == rows["panoptic_seg", "PQ_th"].classes == 6
    assert rows["panoptic_seg", "PQ_st"].classes == 5
    assert rows["panoptic_seg", "PQ"].classes == 11
    assert rows["panoptic_seg", "PQ_dagger"].protocol != rows["panoptic_seg", "PQ"].protocol
    assert rows["sem_seg", "IoU-car"].classes == 1
    never = rows["segm", "AP-train"]
    assert (never.value, never.classes) == (None, 0)
    for (task, metric), row in rows.items():
        shown = results[task][metric]
        assert shown == row.value or (row.value is None and math.isnan(shown))


def test_panoptic_is_panoptic_quality(inputs: list[dict], disturb: Callable) -> None:
    quality, outputs = PanopticQuality(), []
    for i, image in enumerate(inputs):
        ids = disturb(true_ids(image), i)
        quality.update(ids, true_ids(image))
        outputs.append(as_output(ids, i))
    results = evaluate(inputs, outputs)[0]["panoptic_seg"]
    expected = quality.compute()
    for metric in ("PQ", "SQ_th", "RQ_st", "PQ_dagger"):
        assert results[metric] == pytest.approx(expected[metric], abs=1e-9)
    assert 10 < results["PQ"] < 90


def test_sem_seg_is_sem_seg_quality(inputs: list[dict], outputs: list[dict]) -> None:
    """As scores and as a map of train ids; counts of classes and categories."""
    quality = SemSegQuality()
    maps = []
    for image, output in zip(inputs, outputs, strict=True):
        maps.append({"sem_seg": output["sem_seg"].argmax(dim=0)})
        quality.update(maps[-1]["sem_seg"], true_ids(image))
    expected = quality.compute()
    for given in (outputs, maps):
        evaluator = SemSegEvaluator(NAME, ["sem_seg"])
        evaluator.process(inputs, given)
        results = evaluator.evaluate()["sem_seg"]
        for metric in ("mIoU", "iIoU", "mIoU_category", "iIoU_category"):
            assert results[metric] == pytest.approx(expected[metric], abs=1e-9)
        car, human = expected["per_class"]["car"], expected["per_category"]["human"]
        assert results["IoU-car"] == pytest.approx(car["IoU"])
        assert results["iIoU-car"] == pytest.approx(car["iIoU"])
        assert results["IoU_category-human"] == pytest.approx(human["IoU"])
        assert results["iIoU_category-human"] == pytest.approx(human["iIoU"])
        assert "iIoU-road" not in results and "iIoU_category-flat" not in results
    rows = {row.metric: row for row in evaluator.rows}
    assert {row.protocol for row in rows.values()} == {"Cityscapes"}
    for mean, group, metric in (
        ("mIoU", "per_class", "IoU"),
        ("iIoU", "per_class", "iIoU"),
        ("mIoU_category", "per_category", "IoU"),
        ("iIoU_category", "per_category", "iIoU"),
    ):
        seen = [s for s in expected[group].values() if s.get(metric) is not None]
        assert rows[mean].classes == len(seen)
    assert rows["IoU-train"].value is None and rows["IoU-train"].classes == 0


def test_an_image_seen_twice_counts_once(inputs: list[dict], outputs: list[dict]) -> None:
    results, evaluators = evaluate([*inputs, inputs[0]], [*outputs, outputs[0]])
    same(results, evaluate(inputs, outputs)[0])
    assert {row.images for row in evaluators.rows} == {7}


def test_subset_scores_only_what_was_processed(inputs: list[dict], outputs: list[dict]) -> None:
    results, evaluators = evaluate(inputs[:2], perfect(inputs[:2]))
    assert results["segm"]["AP"] == pytest.approx(100)
    assert {row.images for row in evaluators.rows} == {2}
    evaluators.reset()
    evaluators.process(inputs, outputs)
    same(evaluators.evaluate(), evaluate(inputs, outputs)[0])


def test_no_detection_is_zero_and_no_image_is_nan(inputs: list[dict]) -> None:
    results, evaluators = evaluate(inputs, [as_output(np.zeros(SIZE, int), 0) for _ in inputs])
    assert results["bbox"]["AP"] == results["segm"]["AP50"] == results["segm"]["AR@100"] == 0
    assert results["panoptic_seg"]["PQ"] == results["panoptic_seg"]["PQ_dagger"] == 0
    nothing, evaluators = evaluate([], [])
    for task, metric in (
        ("bbox", "AP"),
        ("segm", "AP"),
        ("sem_seg", "mIoU"),
        ("panoptic_seg", "PQ"),
    ):
        assert math.isnan(nothing[task][metric])
    assert {(row.value, row.images) for row in evaluators.rows} == {(None, 0)}


def test_prediction_of_another_size_is_refused(inputs: list[dict]) -> None:
    outputs = [as_output(true_ids(inputs[0])[:32], 0)]
    for evaluator in (
        SemSegEvaluator(NAME, ["sem_seg"]),
        PanopticEvaluator(NAME, ["panoptic_seg"]),
    ):
        with pytest.raises(InvalidMapError, match=r"\(?32, 128\).*64, 128\)"):
            evaluator.process(inputs[:1], outputs)


def test_boxes_alone(inputs: list[dict], outputs: list[dict]) -> None:
    boxes = copy.deepcopy(outputs)
    for output in boxes:
        output["instances"].remove("pred_masks")
    evaluator = InstanceEvaluator(NAME, ["bbox"])
    evaluator.process(inputs, boxes)
    same(evaluator.evaluate(), {"bbox": evaluate(inputs, outputs)[0]["bbox"]})


def run_rank(rank: int, folder: str, shards: str) -> None:
    """Score and write every other image, as one process of two; both have the first one."""
    register_cityscapes_shards(NAME, shards, split="val")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    inputs, outputs = torch.load(f"{folder}/data.pt", weights_only=False)
    own = sorted({0, *range(rank, len(inputs), 2)})
    inputs, outputs = [inputs[i] for i in own], [outputs[i] for i in own]
    results, evaluators = evaluate(inputs, outputs)
    writer = PanopticSubmissionWriter(NAME, folder)
    writer.process(inputs, outputs)
    assert writer.evaluate() == {}
    if rank == 0:
        Path(folder, "results.json").write_text(json.dumps(results))
        assert {row.images for row in evaluators.rows} == {7}
    else:
        assert not results and not evaluators.rows
    torch.distributed.barrier()  # neither tears the connection down under the other
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads now and then abort a normal exit of the interpreter


def test_two_ranks_give_the_numbers_of_one(
    inputs: list[dict], outputs: list[dict], shards: Path, tmp_path: Path
) -> None:
    torch.save((inputs, outputs), tmp_path / "data.pt")
    commands = [[sys.executable, __file__, str(rank), tmp_path, shards] for rank in range(2)]
    ranks = [subprocess.Popen(command) for command in commands]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    results = json.loads((tmp_path / "results.json").read_text())
    same(results, evaluate(inputs, outputs)[0])
    submission = json.loads((tmp_path / "cityscapes_panoptic_val.json").read_text())
    names = [image["image_id"] for image in inputs]
    assert [image["image_id"] for image in submission["annotations"]] == names
    assert len(list((tmp_path / "cityscapes_panoptic_val").glob("*.png"))) == 7


def test_detectron2_tools_take_the_results(inputs: list[dict], outputs: list[dict]) -> None:
    results, _ = evaluate(inputs, outputs)
    print_csv_format(results)
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = [
        [task, metric, results[task][metric], 0.01]
        for task, metric in (
            ("bbox", "AP"), ("segm", "AP"), ("segm_cityscapes", "AP50"),
            ("sem_seg", "iIoU"), ("panoptic_seg", "PQ_dagger"),
        )
    ]  # fmt: skip
    assert verify_results(cfg, results)
    cfg.TEST.EXPECTED_RESULTS = [["panoptic_seg", "PQ", results["panoptic_seg"]["PQ"] + 1, 0.5]]
    with pytest.raises(SystemExit):
        verify_results(cfg, results)


def make_cfg(architecture: str, **test):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.MASK_ON = True
    for key, value in test.items():
        cfg.TEST[key] = value
    return cfg


def test_build_follows_model_and_dataset(inputs: list[dict]) -> None:
    def tasks(cfg) -> tuple[str, ...]:
        return tuple(t for e in build_evaluator(cfg, NAME).evaluators for t in e.tasks)

    assert tasks(make_cfg("SeamlessPanoptic")) == TASKS
    assert tasks(make_cfg("GeneralizedRCNN")) == ("bbox", "segm", "segm_cityscapes")
    assert tasks(make_cfg("SemanticSegmentor")) == ("sem_seg",)
    boxes = make_cfg("GeneralizedRCNN")
    boxes.MODEL.MASK_ON = False
    assert tasks(boxes) == ("bbox",)
    metadata = MetadataCatalog.get(NAME)
    del metadata.tasks
    metadata.tasks = ("bbox", "sem_seg")
    assert tasks(make_cfg("SeamlessPanoptic")) == ("bbox", "sem_seg")
    del metadata.tasks
    metadata.tasks = ("sem_seg",)
    with pytest.raises(D2CityscapesError, match="the model predicts bbox, segm"):
        build_evaluator(make_cfg("GeneralizedRCNN"), NAME)
    del metadata.tasks
    metadata.tasks = TASKS


def test_submission_of_every_task(inputs: list[dict], outputs: list[dict], tmp_path: Path) -> None:
    """Also where the dataset has no truth, as the benchmark's test set."""
    cfg = make_cfg("SeamlessPanoptic", SUBMISSION=True)
    metadata = MetadataCatalog.get(NAME)
    del metadata.tasks
    metadata.tasks = ()
    evaluator = build_evaluator(cfg, NAME, tmp_path)
    evaluator.reset()
    evaluator.process(inputs, outputs)
    assert evaluator.evaluate() == {} and evaluator.rows == []
    folder = tmp_path / "submission" / NAME
    assert {path.name for path in folder.iterdir()} == {"instance", "semantic", "panoptic"}
    names = [image["image_id"] for image in inputs]
    assert len(list(folder.glob("instance/*.txt"))) == len(names)
    for pattern in ("semantic/*.png", "panoptic/*/*.png"):
        assert [path.name.rpartition("_")[0] for path in sorted(folder.glob(pattern))] == names
    del metadata.tasks
    metadata.tasks = TASKS

    semantic = make_cfg("SemanticSegmentor", SUBMISSION=True)
    evaluator = build_evaluator(semantic, NAME, tmp_path / "semantic")
    evaluator.process(inputs, outputs)
    assert evaluator.evaluate().keys() == {"sem_seg"}
    folder = tmp_path / "semantic" / "submission" / NAME
    assert {path.name for path in folder.iterdir()} == {"semantic"}


def test_build_refuses_datasets_that_are_not_shards() -> None:
    with pytest.raises(D2CityscapesError, match="no_such_dataset: not a dataset of shards"):
        build_evaluator(make_cfg("GeneralizedRCNN"), "no_such_dataset")


@pytest.mark.parametrize("kind", ["instance", "semantic", "panoptic"])
def test_the_gates_of_the_quick_configs(kind: str, datasets: Path, repository: Path) -> None:
    """They name every task; the truth scores 100 in each, and another image's truth misses all."""
    cfg = load_config(repository / "configs" / "quick" / f"{kind}.yaml")
    (name,) = cfg.DATASETS.TEST
    inputs = DatasetCatalog.get(name)
    gates = [[task, metric, 100.0, 1e-6] for task, metric, *_ in cfg.TEST.EXPECTED_RESULTS]
    assert [task for task, *_ in gates] == list(model_tasks(cfg))

    evaluator = build_evaluator(cfg, name)
    evaluator.process(inputs, perfect(inputs))
    evaluator.evaluate()
    check_expected(gates, evaluator.rows)
    evaluator.reset()
    evaluator.process(inputs, perfect([*inputs[1:], inputs[0]]))
    evaluator.evaluate()
    with pytest.raises(D2CityscapesError) as error:
        check_expected(gates, evaluator.rows)
    assert len(error.value.details or [error.value]) == len(gates)


def test_a_test_set_is_submitted_and_counted(
    datasets_root: Path,
    repository: Path,
    tiny_opts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the model to results.json: no scores, no error."""
    name = "images_without_truth"
    register_cityscapes_shards(
        name, datasets_root / "cityscapes_shards", split="val", labelled=False
    )
    opts = [*tiny_opts, "DATASETS.TEST", f"('{name}',)", "OUTPUT_DIR", str(tmp_path)]
    cfg = load_config(repository / "configs" / "quick" / "semantic.yaml", opts)
    with pytest.raises(D2CityscapesError, match=rf"{name}: has no truth .*TEST\.SUBMISSION True"):
        build_evaluator(cfg, name)
    cfg.defrost()
    cfg.TEST.SUBMISSION = True
    assert not Trainer.test(cfg, Trainer.build_model(cfg))
    rows, about = read_results(tmp_path / "results.json")
    assert (rows, about["unscored_images"]) == ([], {name: 8})
    assert len(list((tmp_path / "submission" / name / "semantic").glob("*_labelIds.png"))) == 8
    (picture,) = (tmp_path / "pictures" / name).iterdir()
    with Image.open(picture) as drawn:
        assert drawn.width == 2 * 1024 + 8  # image and prediction, no truth
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("form", ["panoptic_seg", "instances", "boxes", "sem_seg"])
def test_pictures(form: str, inputs: list[dict], outputs: list[dict], tmp_path: Path) -> None:
    cfg = make_cfg("SeamlessPanoptic", NUM_PICTURES=2)
    cfg.OUTPUT_DIR = str(tmp_path)
    writer = Trainer.build_evaluator(cfg, NAME).evaluators[-1]
    key = "instances" if form == "boxes" else form
    shown = [{key: copy.deepcopy(output[key])} for output in outputs]
    if form == "boxes":
        for output in shown:
            output["instances"].remove("pred_masks")
    writer.process(inputs, shown)
    assert writer.evaluate() == {}
    files = sorted((tmp_path / "pictures" / NAME).iterdir())
    assert [f.stem for f in files] == [d["image_id"] for d in inputs[:2]]
    with Image.open(files[0]) as picture:
        assert picture.size[0] > 3 * 1000
        panels = np.asarray(picture)[40:]
    third = panels.shape[1] // 3
    assert (panels[:, :third] != panels[:, -third:]).any(), "the truth is drawn over the image"


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2], sys.argv[3])

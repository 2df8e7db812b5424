"""The Detectron2 of this environment: what the edits are for holds.

The tests hold for an official build of Detectron2 main too; what only our wheel promises is asked
of our wheel only, and what releases since 2021 made necessary is not asked of the release 0.6, as
conda-forge builds it.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from install_detectron2.edits import ADDED_FILES, EDITS
from install_detectron2.wheel import PROJECTS
from PIL import Image


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


OUR_WHEEL = _importable("detectron2.utils.missing")
COMPILED = _importable("detectron2._C")
_AS_RELEASED = not OUR_WHEEL and not _importable("detectron2.tracking")  # which came after 0.6
of_a_later_build = pytest.mark.skipif(
    _AS_RELEASED, reason="Detectron2 0.6 as it was released in 2021"
)
REINSTALL = "made from an older table: run tools/install_detectron2.py --force"


def test_our_wheel_carries_every_edit():
    if not OUR_WHEEL:
        return  # an official build: nothing was edited
    root = Path(importlib.util.find_spec("detectron2").origin).parent.parent
    projects = {folder: f"detectron2/projects/{name}" for name, folder in PROJECTS.items()}
    for edit in EDITS:
        folder, _, file = edit.path.rpartition("/")
        text = (root / projects.get(folder, folder) / file).read_text(encoding="utf-8")
        assert edit.new in text, f"{REINSTALL}: {edit}"
        assert edit.old in edit.new or edit.old not in text, f"{REINSTALL}: {edit}"
    for added in ADDED_FILES:
        assert (root / added.path).read_text(encoding="utf-8") == added.text


def _box_iou_rotated() -> torch.Tensor:
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated

    boxes = torch.tensor([[5.0, 5.0, 4.0, 2.0, 0.0]])
    return pairwise_iou_rotated(boxes, boxes)


def _nms_rotated() -> torch.Tensor:
    from detectron2.layers import nms_rotated

    return nms_rotated(torch.tensor([[5.0, 5.0, 4.0, 2.0, 0.0]]), torch.ones(1), 0.5)


def _roi_align_rotated() -> torch.Tensor:
    from detectron2.layers import ROIAlignRotated

    rois = torch.tensor([[0.0, 2.0, 2.0, 2.0, 2.0, 0.0]])
    return ROIAlignRotated((1, 1), 1.0, 0)(torch.ones(1, 1, 4, 4), rois)


@pytest.mark.parametrize("operator", [_box_iou_rotated, _nms_rotated, _roi_align_rotated])
def test_operator_without_the_extension_says_so_on_use(operator):
    if COMPILED:
        assert operator().numel() == 1
    elif OUR_WHEEL:
        with pytest.raises(ImportError, match=r"needs detectron2\._C, which is not installed"):
            operator()
    else:  # an official tree that was not compiled: torch names the operator
        with pytest.raises((ImportError, AttributeError, RuntimeError)):
            operator()


def test_projects_import_without_opencv_and_panopticapi():
    projects = ["deeplab", "point_rend", "panoptic_deeplab"] if OUR_WHEEL else ["deeplab"]
    for name in projects:
        importlib.import_module(f"detectron2.projects.{name}")


@of_a_later_build
def test_exporting_does_not_need_caffe2():
    from detectron2.export import TracingAdapter, scripting_with_instances

    assert callable(TracingAdapter) and callable(scripting_with_instances)


def test_model_zoo_finds_its_configs_and_weights():
    if not (OUR_WHEEL or _importable("pkg_resources")):
        return  # official builds ask setuptools older than 82 for the path
    from detectron2 import model_zoo

    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    assert Path(model_zoo.get_config_file(name)).is_file()
    assert model_zoo.get_checkpoint_url(name).endswith(".pkl")
    assert model_zoo.get_config(name).MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    with pytest.raises(RuntimeError, match="not available"):
        model_zoo.get_config_file("no/such.yaml")


@of_a_later_build
def test_numpy_and_pillow_names_are_current():
    from detectron2.data.build import print_instances_class_histogram
    from detectron2.data.transforms import ExtentTransform
    from detectron2.structures import PolygonMasks
    from detectron2.structures.masks import polygons_to_bitmask

    assert polygons_to_bitmask([], 2, 3).dtype == bool
    square = np.array([0.0, 0, 4, 0, 4, 4, 0, 4])
    assert polygons_to_bitmask([square], 4, 4).all()
    assert PolygonMasks([[square]]).nonempty().tolist() == [True]
    print_instances_class_histogram([{"annotations": [{"category_id": 1}]}], ["a", "b"])
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert ExtentTransform((0, 0, 4, 4), (4, 4)).apply_image(picture).tolist() == picture.tolist()


@pytest.mark.skipif(not OUR_WHEEL, reason="official builds end the epoch on Python 3.11")
def test_mapper_that_returns_none_does_not_end_the_epoch():
    from detectron2.data import MapDataset

    dataset = MapDataset(list(range(10)), lambda n: None if n < 5 else n)
    assert all(dataset[index] >= 5 for index in range(10))
    assert dataset[7] == 7


def _scheduler(kind: str, optimizer: torch.optim.Optimizer):
    from detectron2.solver import LRMultiplier, WarmupParamScheduler
    from fvcore.common.param_scheduler import CosineParamScheduler

    if kind == "torch":
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=3)
    if kind == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)
    warmup = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.01, 0.2, "linear")
    return LRMultiplier(optimizer, warmup, max_iter=10)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("torch", marks=of_a_later_build),
        pytest.param("plateau", marks=of_a_later_build),
        "detectron2",
    ],
)
def test_learning_rates_go_on_after_a_resume(tmp_path, kind):
    """Ten steps in one run and five plus five with a resume between see the same rates."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import HookBase, SimpleTrainer, hooks

    class Record(HookBase):
        def __init__(self) -> None:
            self.rates: list[float] = []

        def before_step(self) -> None:
            self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])

    class Schedule(hooks.LRScheduler):
        def after_step(self) -> None:
            self.scheduler.step(*([1.0] if kind == "plateau" else []))

    class Model(torch.nn.Linear):
        def forward(self, data: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": super().forward(data).square().sum()}

    def run(folder: Path, stop: int, resume: bool = False) -> list[float]:
        model = Model(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer = SimpleTrainer(model, [torch.ones(1, 2)] * stop, optimizer)
        record = Record()
        trainer.register_hooks([Schedule(optimizer, _scheduler(kind, optimizer)), record])
        checkpointer = DetectionCheckpointer(model, str(folder), trainer=trainer)
        checkpointer.resume_or_load("", resume=resume)
        start = trainer.iter + 1 if resume else 0
        trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, stop)])
        trainer.train(start, stop)
        return record.rates

    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()
    whole = run(tmp_path / "whole", 10)
    halves = run(tmp_path / "halves", 5) + run(tmp_path / "halves", 10, resume=True)
    assert len(set(whole)) > 1
    assert halves == pytest.approx(whole)


@pytest.fixture
def tiny_dataset(tmp_path):
    """Two 8x8 pictures, each with one square of class 0 and its semantic truth."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode

    truth = np.zeros((8, 8), dtype=np.uint8)
    truth[2:6, 2:6] = 1
    Image.fromarray(truth).save(tmp_path / "truth.png")
    annotation = {
        "bbox": [2, 2, 6, 6],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "iscrowd": 0,
        "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6]],
    }
    records = [
        {
            "file_name": f"{index}.png",
            "sem_seg_file_name": str(tmp_path / "truth.png"),
            "image_id": index,
            "height": 8,
            "width": 8,
            "annotations": [annotation],
        }
        for index in range(2)
    ]
    name = "install_detectron2_tiny"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        thing_classes=["square"], stuff_classes=["rest", "square"], ignore_label=255
    )
    yield name, records, truth
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_coco_evaluation_needs_no_option_without_the_extension(tiny_dataset, tmp_path):
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, Instances

    name, records, truth = tiny_dataset
    evaluator = COCOEvaluator(name, distributed=False, output_dir=str(tmp_path))
    evaluator.reset()
    for record in records:
        instances = Instances((8, 8))
        instances.pred_boxes = Boxes(torch.tensor([[2.0, 2.0, 6.0, 6.0]]))
        instances.scores = torch.ones(1)
        instances.pred_classes = torch.zeros(1, dtype=torch.int64)
        instances.pred_masks = torch.from_numpy(truth == 1)[None]
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)


@of_a_later_build
def test_semantic_evaluation_runs(tiny_dataset):
    from detectron2.evaluation import SemSegEvaluator

    name, records, truth = tiny_dataset
    evaluator = SemSegEvaluator(name, distributed=False)
    evaluator.reset()
    logits = torch.nn.functional.one_hot(torch.from_numpy(truth).long(), 2).permute(2, 0, 1).float()
    for record in records:
        evaluator.process([record], [{"sem_seg": logits}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)

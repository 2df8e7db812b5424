"""Images a second of prediction, beside stock's, and of evaluation with its scores."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from d2_cityscapes.benchmark.device import synchronize
from d2_cityscapes.benchmark.gpu.models import FAMILIES, Case, State, start_state
from d2_cityscapes.benchmark.gpu.scenes import FULL
from d2_cityscapes.benchmark.gpu.settings import GpuCheck
from d2_cityscapes.benchmark.gpu.tasks import Finding, Found, Task
from d2_cityscapes.data.loader import build_train_loader
from d2_cityscapes.engine.trainer import Trainer

__all__ = ["inference"]

_BESIDE_STOCK = "Mask R-CNN, GIoU (stage 1)"  # with Detectron2's anchors
_EVALUATED = "panoptic, MiniDL (stage 4)"
_FAST = ("SOLVER.CHANNELS_LAST", "True", "MODEL.RESNETS.FOLD_FROZEN_NORM", "True")
_STOCK = (
    "MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT", "0.0", "MODEL.FREEZE.MODULES", "[]",
)  # fmt: skip


def inference(check: GpuCheck, _: Found) -> Iterator[Task]:
    """One image at a time at full size, random weights, so up to 100 detections an image."""
    kinds = {"ours": (), "ours, fast": _FAST, "stock": _STOCK}
    yield f"prediction, {_BESIDE_STOCK}", partial(_predict, check, _BESIDE_STOCK, kinds)
    for family in (_EVALUATED, "DeepLabv3 (stage 0)"):
        yield f"prediction, {family}", partial(_predict, check, family, {"ours": ()})
    yield f"evaluation, {_EVALUATED}", partial(_evaluate, check)


def _predict(check: GpuCheck, family: str, kinds: Mapping[str, tuple[str, ...]]) -> Finding:
    state = _state(check, family)
    cases = {name: _case(check, family, state, opts) for name, opts in kinds.items()}
    batch = next(iter(build_train_loader(cases["ours"].cfg)))
    images = [{key: image[key] for key in ("image", "height", "width")} for image in batch]
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(1 + (1 if check.tiny else 4)):
        for name, case in cases.items():
            predict: Callable = case.model.eval()
            for image in images:
                synchronize(check.device)
                started = time.perf_counter()
                with torch.no_grad():
                    predict([image])
                synchronize(check.device)
                if turn:  # the first one warms up
                    seconds[name].append(time.perf_counter() - started)
    rates = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    text = ", ".join(f"{name} {rate:.2f} images/s" for name, rate in rates.items())
    return Finding(text, {"images_per_second": rates, "seconds": seconds})


def _evaluate(check: GpuCheck) -> Finding:
    opts = (
        "DATASETS.TEST", f"('{FULL}',)", "TEST.NUM_PICTURES", "0",
        "OUTPUT_DIR", str(check.output / "evaluation"),
        "DATALOADER.NUM_WORKERS", str(0 if check.tiny else min(check.workers, 4)),
    )  # fmt: skip
    case = _case(check, _EVALUATED, _state(check, _EVALUATED), opts)
    evaluators = [Trainer.build_evaluator(case.cfg, FULL)]
    started = time.perf_counter()
    Trainer.test(case.cfg, case.model, evaluators)
    seconds = time.perf_counter() - started
    rate = check.images / seconds
    return Finding(
        f"{rate:.2f} images/s: loading, prediction, AP, mIoU and PQ",
        {"images_per_second": rate, "images": check.images},
    )


def _state(check: GpuCheck, family: str) -> State:
    config = FAMILIES[family]
    small = Case(check, config, device="cpu", state=None)
    return start_state(check, config, next(iter(build_train_loader(small.cfg))))


def _case(check: GpuCheck, family: str, state: State, opts: tuple[str, ...]) -> Case:
    return Case(
        check, FAMILIES[family], *opts, device=check.device, state=state, size=check.full_size,
        batch=check.batch, dataset=FULL,
    )  # fmt: skip

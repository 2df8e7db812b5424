"""Short trainings on the device that have to learn, and the CPU's scores of what they learned."""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from d2_cityscapes.benchmark.gpu.scenes import GATE
from d2_cityscapes.benchmark.gpu.settings import GpuCheck
from d2_cityscapes.benchmark.gpu.tasks import Finding, Found, Task
from d2_cityscapes.benchmark.trainers import amp
from d2_cityscapes.engine.trainer import evaluate, setup, train
from d2_cityscapes.evaluation.results import read_results
from d2_cityscapes.run_folder import RESULTS
from d2_cityscapes.shipped import CONFIGS

__all__ = ["gate"]

_FAST = (  # those of the speed options that act on these networks
    "SOLVER.CHANNELS_LAST", "True", "SOLVER.FUSED", "True", "DATALOADER.PREFETCH", "True",
    "DATALOADER.NUM_WORKERS", "2", "MODEL.WAIT_FREE", "True",
)  # fmt: skip
# name -> config of configs/quick, KEY VALUE pairs on a GPU
_GATES = {
    "instance, float32": ("instance.yaml", ()),
    "panoptic, bfloat16, fast": ("panoptic.yaml", (*amp("bfloat16"), *_FAST)),
    "instance, float16, fast": (
        "instance.yaml", (*amp("float16"), *_FAST),
    ),
    "semantic, float16": ("semantic.yaml", amp("float16")),
    "deeplab, float32": ("deeplab.yaml", ()),
}  # fmt: skip
_SHOWN = ("bbox AP50", "segm AP50", "sem_seg mIoU", "panoptic_seg PQ")
_POINTS = 3.0  # percentage points that a score of the CPU may lie away: one object of these few


def gate(check: GpuCheck, _: Found) -> Iterator[Task]:
    """Eight small scenes are learned by heart; bounds are those of the configs."""
    gates = {"semantic": ("semantic.yaml", ())} if check.tiny else _GATES
    for name, (config, opts) in gates.items():
        yield f"learns: {name}", partial(_learn, check, name, config, opts)


def _learn(check: GpuCheck, name: str, config: str, opts: tuple[str, ...]) -> Finding:
    folder = check.output / "gate" / name.replace(", ", "_")
    data = ("DATASETS.TRAIN", f"('{GATE}',)", "DATASETS.TEST", f"('{GATE}',)")
    common = [*data, *opts, "TEST.NUM_PICTURES", "0", "SOLVER.TF32", "none"]

    def args(device: str, output: str, *more: str, eval_only: bool) -> argparse.Namespace:
        opts = [*common, "MODEL.DEVICE", device, "OUTPUT_DIR", str(folder / output), *more]
        file = str(CONFIGS / "quick" / config)
        return argparse.Namespace(
            config_file=file, opts=opts, eval_only=eval_only, resume=False, num_gpus=1
        )

    shutil.rmtree(folder, ignore_errors=True)  # of a call that was interrupted
    weights = folder / "run" / "model_final.pth"
    with contextlib.redirect_stdout(io.StringIO()):  # the log is in the folder
        train(setup(args(check.device, "run", eval_only=False)), allow_unused=True)
        own = _scores(folder / "run")
        on_cpu = args("cpu", "cpu", "MODEL.WEIGHTS", str(weights), eval_only=True)
        evaluate(setup(on_cpu), allow_unused=True)
    weights.unlink()
    other = _scores(folder / "cpu")
    apart = {name: abs(own[name] - other[name]) for name in own}
    worst = max(apart, key=lambda name: apart[name])
    shown = ", ".join(f"{key} {value:.1f}" for key, value in own.items() if key in _SHOWN)
    return Finding(
        f"{shown}; the CPU's scores of it: {worst} {apart[worst]:.2f} points away at most",
        {"scores": own, "scores_of_cpu": other, "furthest": worst, "apart": apart[worst]},
        apart[worst] <= _POINTS,
    )


def _scores(folder: Path) -> dict[str, float]:
    rows, _ = read_results(folder / RESULTS)
    return {f"{row.task} {row.metric}": row.value for row in rows if row.value is not None}

"""README.md of an exported folder: the model's card, as the Hugging Face Hub shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from d2_cityscapes.evaluation.results import ResultRow, percent_text
from d2_cityscapes.export.kinds import FORMATS, GRAPHS

__all__ = ["model_card"]

_MAIN = {
    "bbox": ("AP", "AP50"),
    "segm": ("AP", "AP50"),
    "segm_cityscapes": ("AP", "AP50"),
    "sem_seg": ("mIoU", "iIoU"),
    "panoptic_seg": ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "PQ_dagger"),
}
_TAGS = {"bbox": "object-detection", "sem_seg": "image-segmentation"}
_LICENCES = {
    "cityscapes": (
        "The Cityscapes data are free for non-commercial purposes such as research and teaching, "
        "under the terms at https://www.cityscapes-dataset.com/license/, which ask for a citation "
        "of Cordts et al., CVPR 2016. What they allow for a model trained on them is for its "
        "user to read there."
    ),
}
_RUNTIMES = {
    "onnx": "numpy pillow onnxruntime",
    "openvino": "numpy pillow openvino",
    "torch-export": "numpy pillow torch torchvision",
}


def model_card(
    cfg: CfgNode,
    about: dict[str, Any],
    rows: Sequence[ResultRow],
    comparison: Sequence[str],
    files: Sequence[str],
) -> str:
    """The text, in Markdown.

    Args:
        cfg: of the model.
        about: model.json.
        rows: of the run's results.json; those of a few metrics are shown, with their protocol.
        comparison: lines about the export and its model.
        files: names of what is in the folder.
    """
    tags = ["cityscapes", "detectron2", *(t for task, t in _TAGS.items() if task in about["tasks"])]
    name = f"{about['model']} for {about['dataset']}"
    parts = [
        "---",
        "library_name: d2_cityscapes",
        f"tags: [{', '.join(tags)}]",
        "license: other",
        "---",
        "",
        f"# {name}",
        "",
        f"Predicts {', '.join(about['tasks'])} of street scenes, {len(about['classes'])} classes "
        f"({', '.join(c['name'] for c in about['classes'])}). Made by {about['made_by']}; in this "
        f"folder for {FORMATS[about['format']][1]}.",
        "",
        "## Run it",
        "",
        *_how_to_run(about),
        "",
        "## Training",
        "",
        *_recipe(cfg),
        "",
        "## Scores",
        "",
        *_scores(rows),
        "",
        "## This export",
        "",
        *(f"- {line}" for line in comparison),
        f"- weights: SHA-256 {about['weights_sha256']}",
        *([f"- made by {about['exporter']}"] if "exporter" in about else []),
        *([f"- ONNX operators of opset {about['opset']}"] if "opset" in about else []),
        f"- files: {', '.join(files)}",
        "",
        "## Licence",
        "",
        _LICENCES.get(
            about["dataset"],
            f"The data, {about['dataset']}, have a licence of their own; whether it allows your "
            "use of a model trained on them is for you to read there.",
        ),
        "",
    ]
    return "\n".join(parts)


def _how_to_run(about: dict[str, Any]) -> list[str]:
    if about["format"] in GRAPHS:
        fixed = about["input"]["fixed"]
        size = f"of {fixed[0]} x {fixed[1]} (H x W) pixels alone" if fixed else "of any size"
        return [
            f"For pictures {size}:",
            "",
            f"    pip install {_RUNTIMES[about['format']]}",
            "    python run.py picture.jpg --output seen.png",
            "",
            'In Python, from this folder: `from run import load; load(".")(image)`, of an '
            "(H, W, 3) uint8 RGB array; `run.py` says what comes back.",
        ]
    if about["format"] == "safetensors":
        return [
            "    import d2_cityscapes as d2c",
            '    d2c.load("model.safetensors")(image)   # (H, W, 3) uint8 RGB',
        ]
    return [
        "In a checkout of Detectron2, which needs nothing else:",
        "",
        "    python demo/demo.py --config-file config.yaml --input IMAGE --output FOLDER "
        "--opts MODEL.WEIGHTS model.pth",
    ]


def _recipe(cfg: CfgNode) -> list[str]:
    solver = cfg.SOLVER
    batch = solver.IMS_PER_BATCH * solver.ACCUMULATE_STEPS
    frozen = ", ".join(cfg.MODEL.FREEZE.MODULES) or "nothing"
    return [
        f"- data: {', '.join(cfg.DATASETS.TRAIN) or 'not recorded'}",
        f"- {solver.MAX_ITER} steps of {batch} images, {solver.OPTIMIZER} at a rate of "
        f"{solver.BASE_LR:g}, {solver.LR_SCHEDULER_NAME}, weight decay {solver.WEIGHT_DECAY:g}",
        f"- frozen: {frozen}",
        f"- short edge in training: {', '.join(map(str, cfg.INPUT.MIN_SIZE_TRAIN))} px"
        if not cfg.INPUT.FIXED_SIZE
        else f"- size in training: {cfg.INPUT.FIXED_SIZE[0]} x {cfg.INPUT.FIXED_SIZE[1]} px",
    ]


def _scores(rows: Sequence[ResultRow]) -> list[str]:
    shown = [row for row in rows if row.metric in _MAIN.get(row.task, ())]
    if not shown:
        return ["None recorded: there is no results.json of these weights beside them."]
    return [
        "| task | metric | % | protocol | data | images |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r.task} | {r.metric} | {percent_text(r.value)} | {r.protocol} | {r.dataset} | "
            f"{r.images} |"
            for r in shown
        ),
    ]

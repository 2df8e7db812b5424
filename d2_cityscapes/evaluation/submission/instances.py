"""Instance masks in the format of the benchmark's test server.

cityscapesscripts' evalInstanceLevelSemanticLabeling reads the same files: for each image one text
file with a line ``mask file, label id, score`` for each detection, and the masks as PNGs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.detections import detections_of
from d2_cityscapes.evaluation.shard_evaluator import naming_image
from d2_cityscapes.files import file_below, write_atomically
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.png import write_picture

__all__ = ["InstanceSubmissionWriter", "write_instance_submission"]


class InstanceSubmissionWriter(DatasetEvaluator):
    """Writes ``output["instances"]`` of every image as `write_instance_submission` does.

    It returns no numbers.

    Args:
        dataset_name: a dataset that `register_cityscapes_shards` registered.
        folder: receives the files; the folder to submit.
    """

    def __init__(self, dataset_name: str, folder: str | Path) -> None:
        self.table: LabelTable = MetadataCatalog.get(dataset_name).label_table
        self.folder = Path(folder)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            with naming_image(image, "instances"):
                _, thing_ids, scores = detections_of(found, self.table)
            write_instance_submission(
                self.folder,
                image["file_name"],
                found.pred_masks.to(torch.bool).numpy(),
                self.table.label_id_of_thing[thing_ids],
                scores,
            )

    def evaluate(self) -> dict:
        return {}


def write_instance_submission(
    folder: str | Path,
    file_name: str | Path,
    masks: Iterable[np.ndarray],
    label_ids: np.ndarray,
    scores: np.ndarray,
) -> Path:
    """Write the detections of one image: <stem>.txt, and the masks as <stem>/<number>.png.

    The text file comes last, so that where it stands all its masks do. Detections without a pixel
    are left out, for the benchmark does not count them.

    Args:
        folder: the folder to submit.
        file_name: of the image; its name without folder and suffix is the stem.
        masks: N (H, W) bool masks, at the size of the image.
        label_ids: (N,) label ids, e.g. 26 for car.
        scores: (N,).

    Returns:
        The text file.

    Raises:
        D2CityscapesError: a file name with a space, which the format does not allow, one that no
            file has, or a file that cannot be written.
    """
    stem = Path(file_name).stem
    if len(stem.split()) != 1:
        raise D2CityscapesError(
            f"{file_name}: a submission cannot hold a file name with a space; rename the image"
        )
    text = file_below(Path(folder), f"{stem}.txt")
    mask_folder = file_below(Path(folder), stem)
    lines, names = [], set()
    _remove([text])
    for number, (mask, label_id, score) in enumerate(zip(masks, label_ids, scores, strict=True)):
        if mask.any():
            path = mask_folder / f"{number:04d}.png"
            write_picture(path, mask)  # one bit a pixel
            names.add(path.name)
            lines.append(f"{stem}/{path.name} {label_id} {float(score)!r}\n")
    # masks of an earlier run with more detections
    _remove(path for path in mask_folder.glob("*.png") if path.name not in names)
    write_atomically(text, ["".join(lines).encode()])
    return text


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise D2CityscapesError(f"{path}: cannot be removed ({error.strerror})") from error

"""The archive that becomes Detectron2, and everything that is changed in it.

Every edit is here because something it was written for has moved on since 2021, or because the
wheel has no compiled extension. To add one: find the cause in EDITS, or begin a new one, and write
a row with the text as it stands in the archive.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

__all__ = [
    "ADDED_FILES",
    "EDITS",
    "SDIST_NAME",
    "SDIST_SHA256",
    "SDIST_VERSION",
    "AddedFile",
    "Edit",
]

SDIST_NAME = "pb1-detectron2"
SDIST_VERSION = "0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"


@dataclasses.dataclass(frozen=True)
class Edit:
    """Replace `old` by `new` in one file of the archive, exactly `count` times.

    `since` is the release that made the edit necessary, for example "numpy 1.24", and the subject
    of the sentence that `cause` goes on with. It is empty where the reason is no release.
    """

    path: str
    old: str
    new: str
    cause: str
    since: str = ""
    count: int = 1

    @property
    def reason(self) -> str:
        """Why the edit is made, as one sentence."""
        return f"{self.since} {self.cause}".strip()


@dataclasses.dataclass(frozen=True)
class AddedFile:
    """A file that the archive does not have and the edited ones need."""

    path: str
    source: str  # its name in the folder of this module
    reason: str

    @property
    def text(self) -> str:
        """What the file says."""
        return Path(__file__).with_name(self.source).read_text(encoding="utf-8")


def _edits(since: str, cause: str, *rows: tuple[int, str, str, str]) -> tuple[Edit, ...]:
    """The edits of one cause; a row is (how many times, file, old text, new text)."""
    return tuple(Edit(path, old, new, cause, since, count) for count, path, old, new in rows)


ADDED_FILES = (
    AddedFile(
        "detectron2/utils/missing.py",
        source="added_missing.py",
        reason="what the edited modules import in place of the missing extension and of OpenCV",
    ),
)

_NO_RELEASE = ""
_IMPORT_C = "from detectron2 import _C\n"
_IMPORT_MISSING_C = "from detectron2.utils.missing import _C\n"
_IMPORT_CV2 = "\nimport cv2\n"
_IMPORT_MISSING_CV2 = "\nfrom detectron2.utils.missing import cv2\n"

EDITS = (
    # -- no compiled extension ------------------------------------------------------------------
    *_edits(
        _NO_RELEASE,
        "the pure-Python wheel has no compiled extension: fail on use, not on import",
        (1, "detectron2/layers/deform_conv.py", _IMPORT_C, _IMPORT_MISSING_C),
        (1, "detectron2/layers/roi_align_rotated.py", _IMPORT_C, _IMPORT_MISSING_C),
        (1, "detectron2/layers/rotated_boxes.py", _IMPORT_C, _IMPORT_MISSING_C),
        (1, "detectron2/evaluation/fast_eval_api.py", _IMPORT_C, _IMPORT_MISSING_C),
        (
            1,
            "detectron2/layers/nms.py",
            "from torchvision.ops import nms  # BC-compat\n",
            f"from torchvision.ops import nms  # BC-compat\n\n{_IMPORT_MISSING_C}",
        ),
        (
            1,
            "detectron2/layers/nms.py",
            "    return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)\n",
            "    return _C.nms_rotated(boxes, scores, iou_threshold)\n",
        ),
    ),
    *_edits(
        _NO_RELEASE,
        "COCOEvaluator asks for the compiled evaluation by default; pycocotools gives its numbers",
        (
            1,
            "detectron2/evaluation/coco_evaluation.py",
            "        self._use_fast_impl = use_fast_impl\n",
            "        # The wheel has no compiled evaluation: pycocotools gives the same numbers.\n"
            "        self._use_fast_impl = False\n",
        ),
    ),
    # -- packages that v0.6 imports but does not require ----------------------------------------
    *_edits(
        _NO_RELEASE,
        "OpenCV is no dependency of Detectron2: fail on use, not on import",
        (1, "detectron2/utils/visualizer.py", _IMPORT_CV2, _IMPORT_MISSING_CV2),
        (
            1,
            "projects/PointRend/point_rend/color_augmentation.py",
            _IMPORT_CV2,
            _IMPORT_MISSING_CV2,
        ),
    ),
    *_edits(
        _NO_RELEASE,
        "panopticapi is on no package index: import it on use",
        (
            1,
            "projects/Panoptic-DeepLab/panoptic_deeplab/dataset_mapper.py",
            "import torch\nfrom panopticapi.utils import rgb2id\n",
            "import torch\n",
        ),
        (
            1,
            "projects/Panoptic-DeepLab/panoptic_deeplab/dataset_mapper.py",
            "        targets = self.panoptic_target_generator(rgb2id(",
            "        from panopticapi.utils import rgb2id\n\n"
            "        targets = self.panoptic_target_generator(rgb2id(",
        ),
    ),
    # -- releases since 2021 --------------------------------------------------------------------
    *_edits(
        "numpy 1.24",
        "removed the aliases of Python's own types",
        (1, "detectron2/data/build.py", "dtype=np.int)\n", "dtype=int)\n"),
        (1, "detectron2/data/build.py", "dtype=np.int\n", "dtype=int\n"),
        (1, "detectron2/data/datasets/pascal_voc.py", "dtype=np.str)", "dtype=str)"),
        (2, "detectron2/evaluation/pascal_voc_evaluation.py", ".astype(np.bool)", ".astype(bool)"),
        (2, "detectron2/evaluation/sem_seg_evaluation.py", "dtype=np.int)", "dtype=int)"),
        (2, "detectron2/evaluation/sem_seg_evaluation.py", "dtype=np.float)", "dtype=float)"),
        (3, "detectron2/evaluation/sem_seg_evaluation.py", ".astype(np.float)", ".astype(float)"),
        (2, "detectron2/structures/masks.py", ".astype(np.bool)", ".astype(bool)"),
        (1, "detectron2/structures/masks.py", "dtype=np.bool)", "dtype=bool)"),
        (3, "detectron2/utils/visualizer.py", ".astype(np.bool)", ".astype(bool)"),
        (1, "detectron2/utils/video_visualizer.py", "dtype=np.bool)", "dtype=bool)"),
    ),
    *_edits(
        "Pillow 10",
        "removed the older name of BILINEAR",
        (
            1,
            "detectron2/data/transforms/transform.py",
            "interp=Image.LINEAR",
            "interp=Image.BILINEAR",
        ),
    ),
    *_edits(
        "setuptools 82",
        "removed pkg_resources",
        (1, "detectron2/model_zoo/model_zoo.py", "import pkg_resources\n", ""),
        (
            1,
            "detectron2/model_zoo/model_zoo.py",
            "pkg_resources.resource_filename(\n"
            '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
            "    )",
            "os.path.join(\n"
            '        os.path.dirname(os.path.abspath(__file__)), "configs", config_path\n'
            "    )",
        ),
    ),
    *_edits(
        "Python 3.11",
        "samples sequences only: a mapper that returned None ended the training",
        (
            1,
            "detectron2/data/common.py",
            "self._rng.sample(self._fallback_candidates, k=1)",
            "self._rng.sample(sorted(self._fallback_candidates), k=1)",
        ),
    ),
    *_edits(
        "torch 2",
        "has no caffe2, and exporting to TorchScript must not depend on it",
        (
            1,
            "detectron2/export/__init__.py",
            "from .api import *\n",
            "try:\n    from .api import *\n"
            "except ImportError:  # Caffe2 is no longer part of torch\n    pass\n",
        ),
    ),
    *_edits(
        "torch 2",
        "derives its schedulers from LRScheduler: their state was neither saved nor restored",
        (
            2,
            "detectron2/engine/hooks.py",
            "isinstance(self.scheduler, torch.optim.lr_scheduler._LRScheduler)",
            "isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler)",
        ),
    ),
)

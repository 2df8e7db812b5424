"""Numbers of classes: those of a model's heads against those of its datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet

from d2_cityscapes.config import model_tasks
from d2_cityscapes.data.register import label_table_of
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import LabelTable

__all__ = ["check_classes", "check_num_classes"]


def check_classes(cfg: CfgNode) -> None:
    """Hold the heads of the configured model against every dataset of the config.

    These are DATASETS.TRAIN, DATASETS.TEST and TEST.VAL_LOSS_DATASET, as far as they are datasets
    of shards. No dataset is read.

    Raises:
        D2CityscapesError: datasets of different classes, or a head with another number of classes.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, cfg.TEST.VAL_LOSS_DATASET]
    ours = [name for name in dict.fromkeys(names) if name and _has_table(name)]
    if ours:
        check_num_classes(cfg, label_table_of(ours), ours)


def check_num_classes(cfg: CfgNode, table: LabelTable, datasets: Iterable[str] = ()) -> None:
    """Hold the heads of the configured model against the classes of its data.

    Args:
        cfg: config of the model.
        table: the classes.
        datasets: whose they are, for the error.

    Raises:
        D2CityscapesError: a head with another number of classes.
    """
    for key, found, wanted, kind in _heads(cfg, table):
        if found != wanted:
            whose = f" (DATASETS: {', '.join(datasets)})" if datasets else ""
            raise D2CityscapesError(
                f"{key} is {found}; {cfg.MODEL.META_ARCHITECTURE} needs {wanted} for {table.name}, "
                f"which has as many {kind}{whose}"
            )


def _heads(cfg: CfgNode, table: LabelTable) -> Iterator[tuple[str, int, int, str]]:
    """(key, its value, the right one, what it counts) of each head that the model has."""
    model, things = cfg.MODEL, len(table.things)
    kind = META_ARCH_REGISTRY.get(model.META_ARCHITECTURE)
    if isinstance(kind, type) and issubclass(kind, GeneralizedRCNN):
        yield "MODEL.ROI_HEADS.NUM_CLASSES", model.ROI_HEADS.NUM_CLASSES, things, "things"
    if isinstance(kind, type) and issubclass(kind, RetinaNet):
        yield "MODEL.RETINANET.NUM_CLASSES", model.RETINANET.NUM_CLASSES, things, "things"
    if "sem_seg" in model_tasks(cfg) and model.META_ARCHITECTURE != "UniversalSegmentor":
        key, found = "MODEL.SEM_SEG_HEAD.NUM_CLASSES", model.SEM_SEG_HEAD.NUM_CLASSES
        if model.META_ARCHITECTURE == "DeepLabV3Segmentor" and model.SEM_SEG_HEAD.VOID_CLASS >= 0:
            wanted = len(table.classes) + 1
            yield key, found, wanted, "classes, with void (MODEL.SEM_SEG_HEAD.VOID_CLASS)"
        else:
            yield key, found, len(table.classes), "classes"


def _has_table(name: str) -> bool:
    if name not in MetadataCatalog:
        return False  # which is said where datasets are opened
    meta = MetadataCatalog.get(name)
    return meta.get("label_table") is not None or bool(meta.get("broken"))

"""The class tables, and the only lookup arrays between the id spaces.

Id spaces, all of them integers:

* *label id*: the id of the dataset's own annotation (Cityscapes: 0..33, road is 7, car is 26). 0 is
  void in every table; a dataset that gives 0 to a class (IDD) has its ids moved up by one;
* *train id*: the C evaluated classes in the benchmark's order, 0..C-1; 255 is void;
* *thing id*: the classes that have instances, contiguous from 0 (person 0 ... bicycle 7);
* *instance id*: ``label_id * 1000 + k`` for the k-th instance of a thing class; every other pixel
  is its plain label id: stuff, void, and group regions of a thing class (a car crowd is 26).

A map of instance ids is what shards store, what fusion can emit and what the panoptic evaluator
reads, for prediction and truth alike. It fits 16 bits, so the label ids of things go up to 64.
"""

from d2_cityscapes.labels.cityscapes import CITYSCAPES
from d2_cityscapes.labels.idd import IDD
from d2_cityscapes.labels.table import (
    INSTANCE_DIVISOR,
    VOID_TRAIN_ID,
    LabelClass,
    LabelTable,
)
from d2_cityscapes.labels.vistas import VISTAS

__all__ = [
    "CITYSCAPES",
    "IDD",
    "INSTANCE_DIVISOR",
    "LABEL_TABLES",
    "VISTAS",
    "VOID_TRAIN_ID",
    "LabelClass",
    "LabelTable",
]

# By name, as commands take them.
LABEL_TABLES: dict[str, LabelTable] = {table.name: table for table in (CITYSCAPES, IDD, VISTAS)}

"""Which tensors of a model have rows for each class: the last layers of its heads."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["CLASS_ROWS", "ClassRows", "class_rows"]


@dataclass(frozen=True)
class ClassRows:
    """The weight and bias of a layer.

    Attributes:
        pattern: shell-style, of their names.
        kind: "things" or "classes", as in `d2_cityscapes.labels.record`.
        each: rows for each class, which stand together.
        more: how many rows may follow those of the classes: background, no object, void.
        std: of the weights of a new class; its bias is 0.
        agnostic: rows of such a layer that does not know classes; 0 where there is none.
        whole: whether every tensor of these names has rows for each class, or only the last ones.
    """

    pattern: str
    kind: str
    each: int = 1
    more: tuple[int, ...] = (0,)
    std: float = 0.01
    agnostic: int = 0
    whole: bool = True

    def numbers(self, classes: int) -> tuple[int, ...]:
        """How many rows there may be for so many classes."""
        return tuple(self.each * classes + more for more in self.more)

    def fits(self, tensor: Any, classes: int) -> bool:
        """Whether a tensor or array has as many rows; one without dimensions has none."""
        return len(tensor.shape) > 0 and tensor.shape[0] in self.numbers(classes)

    def is_agnostic(self, tensor: Any) -> bool:
        return len(tensor.shape) > 0 and tensor.shape[0] == self.agnostic


CLASS_ROWS = (
    ClassRows("roi_heads.box_predictor*.cls_score.*", "things", more=(1,)),
    ClassRows("roi_heads.box_predictor*.bbox_pred.*", "things", each=4, std=0.001, agnostic=4),
    ClassRows("roi_heads.mask_head.predictor.*", "things", std=0.001, agnostic=1),
    ClassRows("sem_seg_head.predictor.*", "classes", more=(0, 1)),
    ClassRows("classifier.*", "classes", more=(0, 1), whole=False),
    ClassRows("aux_classifier.*", "classes", more=(0, 1), whole=False),
    ClassRows("network.class_predictor.*", "classes", more=(1,)),
)


def class_rows(names: Iterable[str], kind: str) -> list[tuple[str, ClassRows]]:
    """The tensors that may have rows for each class of a kind, in the order of `CLASS_ROWS`.

    Of a layer the weight stands before the bias, whatever the order of the names.

    Args:
        names: of all tensors.
        kind: "things" or "classes".
    """
    names = sorted(names, reverse=True)
    return [
        (name, rows)
        for rows in CLASS_ROWS
        if rows.kind == kind
        for name in fnmatch.filter(names, rows.pattern)
    ]

"""Whether a model that was built holds the values that were sampled for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from d2_cityscapes.modeling.freezing.freeze import unwrap
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.space.plan import named_value, value_at
from d2_cityscapes.search.space.space import split_name

__all__ = ["check_applied"]


def check_applied(
    cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer, values: Mapping[str, Any]
) -> None:
    """Compare sampled values with what the model and its optimizer really have.

    For the keys that `_READERS` knows how to find again; `check_reach` looks after the others.

    Args:
        cfg: of the trial.
        model, optimizer: built from it, before the first step.
        values: name -> sampled value, see `Space`.

    Raises:
        SearchError: a value that did not arrive, named.
    """
    for name, value in values.items():
        key, _ = split_name(name)
        if key not in _READERS:
            continue
        wanted = value_at(cfg, key)
        held = named_value(cfg, name)
        if not _equal(value, held):  # such as anchor sizes that a file of anchors replaces
            raise SearchError(f"{name}: {value} was sampled, but the config has {held}")
        found = _READERS[key](unwrap(model), optimizer, cfg)
        if found is not None and not _equal(wanted, found):
            raise SearchError(f"{name}: the config has {wanted}, but the model has {found}")


def _matcher(path: str, attribute: str) -> Callable[..., list[float] | None]:
    def read(model: nn.Module, optimizer: Any, cfg: CfgNode) -> list[float] | None:
        matcher = getattr(getattr(model, path, None), attribute, None)
        if matcher is None:
            return None
        return [t for t in matcher.thresholds if math.isfinite(t)]

    return read


def _anchor_sizes(model: nn.Module, optimizer: Any, cfg: CfgNode) -> list[list[float]] | None:
    """Per level: square roots of the areas of its anchors, each once.

    As the config has them, where it says the same with one list for all levels or in another order.
    """
    generator = getattr(getattr(model, "proposal_generator", None), "anchor_generator", None)
    if generator is None:
        return None
    levels = []
    for cell in generator.cell_anchors:
        width, height = cell[:, 2] - cell[:, 0], cell[:, 3] - cell[:, 1]
        levels.append(sorted({round(float(size), 3) for size in (width * height).sqrt()}))
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    wanted = [sorted(set(level)) for level in (sizes * len(levels) if len(sizes) == 1 else sizes)]
    return sizes if _equal(wanted, levels) else levels


def _learning_rate(model: nn.Module, optimizer: torch.optim.Optimizer, cfg: CfgNode) -> float:
    """Of most parameters; biases may have their own."""
    rates = [
        (len(group["params"]), group.get("initial_lr", group["lr"]))
        for group in optimizer.param_groups
    ]
    return max(rates)[1]


def _frozen(model: nn.Module, optimizer: Any, cfg: CfgNode) -> list[str]:
    """The patterns of MODEL.FREEZE.MODULES whose modules have nothing that trains."""
    later = [pattern for _, patterns in cfg.MODEL.FREEZE.SCHEDULE for pattern in patterns]
    kept = []
    for pattern in cfg.MODEL.FREEZE.MODULES:
        parameters = [
            parameter
            for name, module in model.named_modules()
            if fnmatchcase(name, pattern)
            for parameter in module.parameters()
        ]
        if not any(parameter.requires_grad for parameter in parameters) or later:
            kept.append(pattern)
    return kept


# Config key -> (model, optimizer, cfg) -> the value in force; None where there is no such part.
_READERS: dict[str, Callable[[nn.Module, torch.optim.Optimizer, CfgNode], Any]] = {
    "MODEL.RPN.IOU_THRESHOLDS": _matcher("proposal_generator", "anchor_matcher"),
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": _matcher("roi_heads", "proposal_matcher"),
    "MODEL.ANCHOR_GENERATOR.SIZES": _anchor_sizes,
    "MODEL.FREEZE.MODULES": _frozen,
    "SOLVER.BASE_LR": _learning_rate,
}


def _equal(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, int | float):
        return math.isclose(wanted, found, rel_tol=1e-3)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        pairs = zip(wanted, found, strict=False)
        return len(wanted) == len(found) and all(_equal(*pair) for pair in pairs)
    return wanted == found

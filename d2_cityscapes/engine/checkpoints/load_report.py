"""What became of the tensors of a model when weights were loaded into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor

from d2_cityscapes.modeling.anchors.record import find_records
from d2_cityscapes.modeling.freezing.freeze import parents

__all__ = ["LoadReport", "make_report", "shortened"]

_COUNTER = ".num_batches_tracked"  # of batch norms: no weight, and often left out of files
_SHOWN = 10  # names in one line
_BRANCHING = ("roi_heads",)  # modules that hold heads side by side


@dataclass(frozen=True)
class LoadReport:
    """Names as in the state dict of the model; every tensor of it stands in one of the first four.

    Attributes:
        loaded: taken from the file.
        skipped: name -> (shape in the file, shape in the model), where the two differ.
        missing: in the model only.
        excluded: kept out on request, whether the file has them or not.
        unused: in the file only.
    """

    loaded: tuple[str, ...]
    skipped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: tuple[str, ...]
    excluded: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def initialised(self) -> tuple[str, ...]:
        """What stays as the model was built: random, but for norms and the like."""
        return (*self.skipped, *self.missing, *self.excluded)

    def summary(self) -> str:
        """E.g. "loaded 4 of 6 tensors; skipped 2: fc.weight (81, 1024) vs (9, 1024), ..."."""
        text = f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.initialised)} tensors"
        if self.skipped:
            shapes = [f"{name} {file} vs {model}" for name, (file, model) in self.skipped.items()]
            text += f"; skipped {len(self.skipped)}: {shortened(shapes)}"
        return text

    @property
    def surplus(self) -> tuple[str, ...]:
        """Those unused that lie inside of a module which the model has: of a larger network.

        Whole branches more, such as a mask head or the semantic head of another model, are none.
        """
        own = {parent for name in (*self.loaded, *self.initialised) for parent in parents(name)}
        found = []
        for name in self.unused:
            around = [parent for parent in parents(name) if parent in own]
            inside = around[-1] not in _BRANCHING if around else _in_a_block(name, own)
            if inside:
                found.append(name)
        return tuple(found)

    def modules(self, names: Collection[str]) -> str:
        """Some of the names in short, e.g. "roi_heads.mask_head (10 tensors), ...".

        A group is the outermost module of model and file that holds nothing but these names.
        """
        others = {*self.loaded, *self.initialised, *self.unused}.difference(names)
        mixed = {parent for name in others for parent in parents(name)}
        groups = Counter(
            next((parent for parent in parents(name) if parent not in mixed), name)
            for name in names
        )
        return shortened([f"{group} ({_tensors(number)})" for group, number in groups.items()])


def make_report(
    state: Mapping[str, Tensor], excluded: Sequence[str], incompatible: _IncompatibleKeys
) -> LoadReport:
    """From what fvcore found incompatible, whose missing keys contain those of other shapes.

    Args:
        state: of the model.
        excluded: names in it that were kept out.
        incompatible: in the names of the model.
    """
    records, out = find_records(state), set(excluded)
    names = [name for name in state if not name.endswith(_COUNTER) and name not in records]
    skipped = {
        name: (tuple(file), tuple(model))
        for name, file, model in incompatible.incorrect_shapes
        if name not in out
    }
    missing = set(incompatible.missing_keys).difference(out, skipped)
    absent = {*missing, *skipped, *out}
    return LoadReport(
        loaded=tuple(name for name in names if name not in absent),
        skipped=skipped,
        missing=tuple(name for name in names if name in missing),
        excluded=tuple(name for name in names if name in out),
        unused=tuple(n for n in incompatible.unexpected_keys if not n.endswith(_COUNTER)),
    )


def shortened(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _in_a_block(name: str, own: Collection[str]) -> bool:
    """Whether a name without the modules around it, as in Detectron2's pickles, is of a body.

    Of "res4.6.conv1.weight" the model has "backbone.bottom_up.res4", of "stem.fc.weight" the stem:
    blocks have numbers, the classifier of ImageNet has none.
    """
    rows = (parent.rpartition(".") for parent in parents(name))
    around = [above for above, _, number in rows if above and number.isdecimal()]
    return any(module.endswith(f".{above}") for above in around for module in own)


def _tensors(number: int) -> str:
    return f"{number} tensor{'s' if number > 1 else ''}"

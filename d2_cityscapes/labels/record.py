"""The classes that weights were trained for, as plain values beside them in their file.

A *class record* has "table", the name and "hash" of the label table, "things", the names of the
thing classes by thing id, and "classes", those of all classes by train id. Weights from elsewhere
may have less: what is not there is not known. Converted ones may have "mapped" as well, lines that
say which rows came from which class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from d2_cityscapes.labels.table import LabelTable

__all__ = ["CLASSES", "KINDS", "MAPPED", "class_differences", "class_record", "mapped_lines"]

CLASSES = "label_table"  # the key beside "model"
MAPPED = "mapped"  # a key of the record
# Kind of names -> what predicts them.
KINDS = {"things": "instances", "classes": "semantics"}
_SHOWN = 6  # names on either side of the first that differs


def class_record(table: LabelTable) -> dict[str, Any]:
    """The record of weights that are trained on data of this table."""
    return {
        "table": table.name,
        "hash": table.hash,
        "things": [c.name for c in table.things],
        "classes": [c.name for c in table.classes],
    }


def class_differences(record: Any, table: LabelTable) -> dict[str, str]:
    """Kind of names -> how those of a record and of a table differ, for the kinds that do.

    Tables that differ in annotation ids only mean the same by a prediction.

    Args:
        record: as read from a file, which anybody may have written; None where there is none.
        table: that of the data at hand.
    """
    if not isinstance(record, Mapping) or record.get("hash") == table.hash:
        return {}
    own, found = class_record(table), {}
    for kind in KINDS:
        names = record.get(kind)
        if isinstance(names, Sequence) and list(names) != own[kind]:
            old, new = list(map(str, names)), own[kind]
            found[kind] = (
                f"trained for the {kind} of {record.get('table', '?')} ({_part(old, new)}), and "
                f"the data has those of {table.name} ({_part(new, old)})"
            )
    return found


def mapped_lines(record: Any) -> list[str]:
    """What a record says of rows that were taken from other classes; of any other thing nothing."""
    lines = record.get(MAPPED) if isinstance(record, Mapping) else None
    return [line for line in lines if isinstance(line, str)] if isinstance(lines, list) else []


def _part(names: Sequence[str], others: Sequence[str]) -> str:
    """Names from the first on that differs, by number: "2 car, 3 truck, ..."."""
    same = zip(names, others, strict=False)
    first = next((i for i, (a, b) in enumerate(same) if a != b), min(len(names), len(others)))
    shown = [f"{i} {name}" for i, name in enumerate(names) if first <= i < first + _SHOWN]
    more = ", ..." if len(names) > first + _SHOWN else ""
    return f"{', '.join(shown) or 'no more'}{more}"

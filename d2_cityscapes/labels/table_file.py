"""Tables of classes as YAML, so that nobody edits Python for classes of one's own.

    name: harbour
    classes:                      # in the order of every score
      - {name: water, id: 1, color: [0, 60, 120]}
      - {name: ship, id: 2, color: [200, 30, 30], thing: true}
      - {name: buoy, void: true}

Only the names are needed. A class is stuff unless ``thing`` is true. ``id`` is what maps of
instance ids hold; those that are not given are the lowest free ones. ``void`` is for labels that
annotations use and nobody wants: they neither train nor count. Id 0 is void in every table.
"""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from d2_cityscapes.errors import D2CityscapesError, first_few, nearest
from d2_cityscapes.files import file_errors, write_atomically
from d2_cityscapes.labels import LABEL_TABLES
from d2_cityscapes.labels.table import MOST_THINGS, LabelClass, LabelTable, LabelTableError
from d2_cityscapes.yaml_text import load_yaml

__all__ = [
    "ClassEntry",
    "as_color",
    "find_table",
    "make_table",
    "read_table",
    "table_text",
    "write_table",
]

_LARGEST = 1 << 20  # bytes of a file; 255 classes take some 20 kB
_LONGEST_NAME = 200
_KEYS = ("name", "id", "color", "thing", "void")
_HEAD = (
    "# The classes in the order of every score. A color may be changed, here and now; names, ids,\n"
    "# thing and void belong to the shards: copy this file, and pack again with --classes COPY.\n"
)
_HEX = re.compile("#[0-9a-fA-F]{6}")
_GOLDEN = 0.61803398875  # steps of this part of a circle come near to no earlier one


class ClassEntry(NamedTuple):
    """One label as a file names it.

    Attributes:
        name: of the label.
        label_id: in maps of instance ids; None for the lowest free one.
        color: RGB, 0..255; None for any.
        thing: whether it has instances.
        void: whether it neither trains nor counts.
    """

    name: str
    label_id: int | None = None
    color: tuple[int, int, int] | None = None
    thing: bool = False
    void: bool = False


def make_table(name: str, entries: Sequence[ClassEntry]) -> LabelTable:
    """The table of labels in this order. Things get their ids first, so that these stay small.

    Raises:
        LabelTableError: ids or names that cannot be, or no class at all.
    """
    for number, entry in enumerate(entries, 1):
        _text(entry.name, f"{name}: name of class {number}")
    things = sum(e.thing and not e.void for e in entries)
    if things > MOST_THINGS:
        raise LabelTableError(
            f"{name}: {things} things, and ids have room for {MOST_THINGS}; make some of them "
            "stuff or void in a table of your own (--classes FILE)"
        )
    taken = {e.label_id for e in entries}
    free = (i for i in range(1, len(entries) + len(taken) + 1) if i not in taken)
    order = sorted(range(len(entries)), key=lambda i: not entries[i].thing)
    ids = {i: next(free) if (own := entries[i].label_id) is None else own for i in order}
    labels = [(ids[i], e.name) for i, e in enumerate(entries)]
    number, times = next(iter(Counter(ids.values()).most_common(1)), (0, 0))
    if times > 1:
        names = [label for label_id, label in labels if label_id == number]
        raise LabelTableError(
            f"{name}: id {number} stands for {' and '.join(names)}; every label has its own"
        )
    classes: list[LabelClass] = []
    thing_id = 0
    for i, entry in enumerate(entries):
        if entry.void:
            continue
        color = entry.color or _color(len(classes))
        own_thing = thing_id if entry.thing else None
        classes.append(LabelClass(entry.name, ids[i], len(classes), own_thing, color))
        thing_id += entry.thing
    if not classes:
        raise LabelTableError(f"{name}: no classes; name one or more")
    void = [] if 0 in ids.values() else [(0, "void")]
    return LabelTable(name, tuple(classes), tuple([*void, *labels]))


def read_table(path: str | Path) -> LabelTable:
    """The table of a YAML file.

    Raises:
        LabelTableError: naming the file, the class and what to do: unreadable, no table, or classes
            that do not fit together.
    """
    path = Path(path)
    with file_errors(path, LabelTableError), open(path, "rb") as file:
        data = file.read(_LARGEST + 1)
    try:
        if len(data) > _LARGEST:
            raise LabelTableError(f"larger than {_LARGEST >> 10} KiB, which no table of classes is")
        document = load_yaml(data.decode())
        name = document.get("name", path.stem) if isinstance(document, Mapping) else None
        if name is None or not isinstance(document.get("classes"), list):
            raise LabelTableError(
                "no table of classes; it has a list, classes:, with lines like "
                "- {name: ship, thing: true}"
            )
        _check_keys(document, ("name", "classes"), "the table")
        entries = [_entry(entry, i) for i, entry in enumerate(document["classes"], 1)]
        return make_table(_text(name, "name of the table"), entries)
    except (D2CityscapesError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise LabelTableError(f"{path}: {reason}") from error
    except RecursionError as error:
        raise LabelTableError(f"{path}: nested without end") from error


def find_table(name: str | Path) -> LabelTable:
    """A built-in table by its name, or that of a YAML file.

    Raises:
        LabelTableError: neither, or see `read_table`.
    """
    if str(name) in LABEL_TABLES:
        return LABEL_TABLES[str(name)]
    if not Path(name).is_file():
        raise LabelTableError(
            f"{name}: no such file, and none of the built-in tables {', '.join(LABEL_TABLES)}"
        )
    return read_table(name)


def table_text(table: LabelTable) -> str:
    """A table as YAML, which reads back as the same table.

    Raises:
        LabelTableError: things, or labels, that stand in another order than classes.
    """
    classes = {c.label_id: c for c in table.classes}
    entries = []
    for label_id, name in table.label_names:
        c = classes.get(label_id)
        entry = ClassEntry(name, label_id, void=True)
        if c is not None:
            entry = ClassEntry(c.name, label_id, c.color, c.is_thing)
        entries.append(entry)
    if not entries or make_table(table.name, entries) != table:
        raise LabelTableError(
            f"{table.name}: its labels or things stand in another order than its classes, which "
            "a file cannot say; list all of them in one order, with 0 for void"
        )
    lines = "".join(f"  - {_flow(_fields(entry))}\n" for entry in entries)
    return f"{_HEAD}{_flow({'name': table.name})[1:-1]}\nclasses:\n{lines}"


def write_table(path: str | Path, table: LabelTable) -> None:
    """Write what `table_text` gives, whole or not at all."""
    write_atomically(path, [table_text(table).encode()])


def _entry(entry: object, number: int) -> ClassEntry:
    """One line of a file, the `number`-th."""
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise LabelTableError(
            f"class {number}: {str(entry)[:40]!r}; write it as {{name: ship, thing: true}}"
        )
    name = _text(entry["name"], f"name of class {number}")
    what = f"class {number}, {name}"
    _check_keys(entry, _KEYS, what)
    label_id = entry.get("id")
    if label_id is not None and type(label_id) is not int:
        raise LabelTableError(f"{what}: id {label_id!r}; use a whole number")
    for key in ("thing", "void"):
        if not isinstance(entry.get(key, False), bool):
            raise LabelTableError(f"{what}: {key} {entry[key]!r}; use true or false")
    thing, void = entry.get("thing", False), entry.get("void", False)
    if thing and void:
        raise LabelTableError(f"{what}: thing and void; void labels have no instances")
    if void and label_id is not None and not 0 <= label_id < 1000:
        raise LabelTableError(f"{what}: id {label_id}; void labels have ids from 0 to 999")
    return ClassEntry(name, label_id, as_color(entry.get("color"), what), thing, void)


def as_color(value: object, what: str) -> tuple[int, int, int] | None:
    """RGB from a file, three numbers or "#rrggbb"; None where it has none.

    Args:
        value: as it was read.
        what: has it, for the error.

    Raises:
        LabelTableError: no such colour.
    """
    if value is None:
        return None
    if isinstance(value, str) and _HEX.fullmatch(value):
        value = [*bytes.fromhex(value[1:])]
    parts = value if isinstance(value, list) else []
    if len(parts) != 3 or not all(type(part) is int and 0 <= part <= 255 for part in parts):
        raise LabelTableError(f"{what}: color; use three numbers from 0 to 255, [200, 30, 30]")
    return parts[0], parts[1], parts[2]


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise LabelTableError(f"{what}: {str(value)[:40]!r} is no text; put it in quotes")
    if not value.strip() or not value.isprintable() or len(value) > _LONGEST_NAME:
        raise LabelTableError(f"{what}: {value[:40]!r}; use 1 to {_LONGEST_NAME} printable letters")
    return value


def _check_keys(found: Mapping[Any, Any], known: Sequence[str], what: str) -> None:
    for key in found:
        if key not in known:
            hint = nearest(str(key), known) or f"; it has {first_few(known, 8)}"
            raise LabelTableError(f"{what}: unknown key {str(key)[:40]!r}{hint}")


def _fields(entry: ClassEntry) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": entry.name, "id": entry.label_id}
    if entry.color is not None:
        fields["color"] = list(entry.color)
    return fields | {key: True for key in ("thing", "void") if getattr(entry, key)}


def _flow(fields: dict[str, Any]) -> str:
    """One line of YAML, in braces."""
    return yaml.safe_dump(
        fields, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    ).strip()


def _color(number: int) -> tuple[int, int, int]:
    """A colour unlike those of lower numbers."""
    bright = 1.0 - 0.2 * (number % 3)
    parts = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.55 + 0.2 * (number // 3 % 3), bright)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue

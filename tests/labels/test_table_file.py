"""Tables of classes as YAML: what is written reads back, and what is wrong is said in one line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_cityscapes.labels import LABEL_TABLES, LabelClass, LabelTable
from d2_cityscapes.labels.table import LabelTableError
from d2_cityscapes.labels.table_file import (
    ClassEntry,
    find_table,
    make_table,
    read_table,
    table_text,
    write_table,
)

HARBOUR = """
name: harbour
classes:
  - {name: water, id: 1, color: [0, 60, 120]}
  - {name: quay}
  - {name: ship, color: "#c81e1e", thing: true}
  - {name: buoy, void: true}
  - {name: crane, id: 9, thing: true}
"""


@pytest.fixture
def write(tmp_path: Path):
    """The path of a file with this text."""

    def make(text: str | bytes) -> Path:
        path = tmp_path / "classes.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def test_a_file_of_classes(write) -> None:
    table = read_table(write(HARBOUR))
    assert table.name == "harbour"
    # ids that are not given: the lowest free ones, first of the things
    assert [(c.name, c.label_id, c.train_id, c.thing_id) for c in table.classes] == [
        ("water", 1, 0, None),
        ("quay", 3, 1, None),
        ("ship", 2, 2, 0),
        ("crane", 9, 3, 1),
    ]
    assert table.label_names == (
        (0, "void"), (1, "water"), (3, "quay"), (2, "ship"), (4, "buoy"), (9, "crane"),
    )  # fmt: skip
    assert table.classes[0].color == (0, 60, 120) and table.classes[2].color == (200, 30, 30)
    assert table.train_id_of[[4, 9001, 0, 3]].tolist() == [255, 3, 255, 1]


@pytest.mark.parametrize("name", LABEL_TABLES)
def test_built_in_tables_read_back(tmp_path: Path, name: str) -> None:
    table = find_table(name)
    write_table(tmp_path / "t.yaml", table)
    read = find_table(tmp_path / "t.yaml")
    assert read == table and read.hash == table.hash


names = st.text(
    st.characters(categories=("L", "N", "P", "Zs", "S")), min_size=1, max_size=30
).filter(lambda name: name.strip() and name.isprintable())
colors = st.none() | st.tuples(*3 * [st.integers(0, 255)])
kinds = st.sampled_from(["thing", "stuff", "void"])
entries = st.lists(st.tuples(names, colors, kinds), max_size=70, unique_by=lambda e: e[0])


@settings(max_examples=40, deadline=None)
@given(st.data(), names, entries)
def test_what_is_written_reads_back(data, name: str, found) -> None:
    ids = st.none() | st.integers(1, 64)
    made = [
        ClassEntry(label, data.draw(ids), color, kind == "thing", kind == "void")
        for label, color, kind in found
    ]
    try:
        table = make_table(name, made)
    except LabelTableError as error:
        assert "\n" not in str(error)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classes.yaml"
        path.write_text(table_text(table), encoding="utf-8")
        read = read_table(path)
    assert read == table and read.hash == table.hash


def test_colors_that_nobody_chose_differ() -> None:
    table = make_table("many", [ClassEntry(f"c{i}") for i in range(255)])
    assert len({c.color for c in table.classes}) == 255


def test_an_order_that_a_file_cannot_say_is_refused() -> None:
    classes = (
        LabelClass("truck", 64, 0, 1, (1, 2, 3)),
        LabelClass("bicycle", 2, 1, 0, (1, 2, 3)),
    )
    table = LabelTable("own", classes, ((0, "void"), (64, "truck"), (2, "bicycle")))
    with pytest.raises(LabelTableError, match="own: its labels or things stand in another order"):
        table_text(table)


def line(text: str) -> str:
    return f"classes: [{{{text}}}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no table of classes; it has a list, classes:"),
        ("- a\n- b", "no table of classes"),
        ("name: a", "no table of classes"),
        ("classes: {a: b}", "no table of classes"),
        ("classes: []", "no classes; name one or more"),
        ("classes: [ship]", "class 1: 'ship'; write it as {name: ship, thing: true}"),
        (line("id: 3"), "class 1: .*write it as"),
        (line("name: yes"), "name of class 1: 'True' is no text; put it in quotes"),
        (line("name: ''"), "name of class 1: ''; use 1 to 200 printable"),
        (line('name: "a\\nb"'), "name of class 1: .*printable"),
        (line(f"name: {'a' * 300}"), "name of class 1"),
        (line("name: ship, colour: [1, 2, 3]"), "class 1, ship: unknown key 'colour'; nearest"),
        (line("name: ship, color: [1, 2]"), "class 1, ship: color; use three numbers"),
        (line("name: ship, color: [1, 2, 300]"), "class 1, ship: color; use three numbers"),
        (line("name: ship, color: red"), "class 1, ship: color; use three numbers"),
        (line("name: ship, color: [1, 2, true]"), "class 1, ship: color; use three numbers"),
        (line("name: ship, thing: 1"), "class 1, ship: thing 1; use true or false"),
        (line("name: ship, id: three"), "class 1, ship: id 'three'; use a whole number"),
        (line("name: ship, id: 0"), "label id 0 of ship; classes have ids from 1"),
        (line("name: ship, id: 65, thing: true"), "label id 65 of ship; .*things up to 64"),
        (line("name: ship, id: 1000"), "label id 1000 of ship; .*stuff up to 999"),
        (line("name: ship, void: true, id: 1000"), "class 1, ship: id 1000; void labels"),
        (line("name: ship, void: true, thing: true"), "class 1, ship: thing and void"),
        (line("name: ship, void: true"), "no classes; name one or more"),
        ("classes: [{name: a, id: 2}, {name: b, id: 2}]", "id 2 stands for a and b"),
        ("classes: [{name: a}, {name: a}]", "2 classes of the name a; every class has its own"),
        ("name: [1]\nclasses: [{name: a}]", "name of the table: .* is no text"),
        ("label: x\nclasses: [{name: a}]", "the table: unknown key 'label'"),
        ("classes: [", "while parsing"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("[" * 5000, "nested without end|while parsing"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"#" * (1 << 21), "larger than 1024 KiB"),
        ("classes: [" + ", ".join(f"{{name: a{i}, thing: true}}" for i in range(65)) + "]",
         "65 things, and ids have room for 64"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_file_class_and_remedy(write, text, message) -> None:
    path = write(text)
    with pytest.raises(LabelTableError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(LabelTableError, match=r"no.yaml: no such file, and none of .* idd, vistas"):
        find_table(tmp_path / "no.yaml")
    with pytest.raises(LabelTableError, match=r"no.yaml: missing"):
        read_table(tmp_path / "no.yaml")

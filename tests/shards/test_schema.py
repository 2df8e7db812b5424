"""Index and header are checked as a whole: whatever they hold, a shard is read or a ShardError."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2_cityscapes.data import ShardError, ShardReader, write_shards
from d2_cityscapes.evaluation.panoptic.files import find_panoptic_files
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.shards.file import head_checksum
from d2_cityscapes.shards.index import load_entries
from d2_cityscapes.shards.reader import read_index, select_shards
from d2_cityscapes.shards.schema import SchemaError, check_header, check_index

NAMES = ["../a.png", "/etc/a.png", "a\0.png", "..", "", "C:\\a.png", "a\\b", "x" * 300, "...png"]


@pytest.fixture(scope="module")
def shards(sources, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(sources, folder, split="train", partitions=2)
    write_shards(sources[:3], folder, split="val", image_codec="zstd")
    return folder


@pytest.fixture(scope="module")
def index(shards) -> dict[str, Any]:
    return json.loads((shards / "index.json").read_text())


def parts(path: Path) -> tuple[dict[str, Any], bytes, bytes]:
    """Header, tables and the rest of a shard."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    tables = end + header["annotation_blob"]["data_offsets"][0]
    return header, content[end:tables], content[tables:]


def rebuilt(header: dict[str, Any], tables: bytes, rest: bytes) -> bytes:
    """A shard with the checksum that its header asks for."""
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["checksum"] = head_checksum(header, tables)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tables + rest


def use_folder(folder: Path) -> None:
    """Everything that reads an index."""
    read_index(folder)
    for split in ("train", "val", None):
        select_shards(folder, split=split)
    find_panoptic_files(folder, truth=True, split="train")
    reader = ShardReader(folder, split="train")
    reader[0]


def read_all(path: Path) -> None:
    reader = ShardReader(path)
    for row in range(len(reader)):
        reader[row]


def mutated(document: Any, draw: Callable) -> Any:
    """A copy with one value, somewhere, replaced or left out."""
    document = copy.deepcopy(document)
    node: Any = document
    for _ in range(draw(st.integers(0, 6))):
        keys = [*node] if isinstance(node, dict) else [*range(len(node))]
        key = draw(st.sampled_from(keys)) if keys else None
        if key is None or not isinstance(node[key], dict | list) or not node[key]:
            break
        node = node[key]
    keys = [*node] if isinstance(node, dict) else [*range(len(node))]
    if keys:
        key = draw(st.sampled_from(keys))
        value = draw(VALUES)
        if value is LEFT_OUT:
            del node[key]
        else:
            node[key] = value
    return document


LEFT_OUT = object()
VALUES = st.one_of(
    st.just(LEFT_OUT),
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.sampled_from([10**9, 10**30, -(10**30), 2**63, 0.5, float("inf"), float("nan")]),
    st.sampled_from([*NAMES, "[-1, -1]", "[1e9, 1e9]", '["a", "b"]', "[" * 3000, "9" * 5000, "{}"]),
    st.text(max_size=5),
    st.lists(st.integers(-2, 30), max_size=3),
    st.just({}),
    st.just([[[]]]),
)
quiet = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quiet
@given(data=st.data())
def test_any_change_of_an_index_is_read_or_a_shard_error(shards, index, data):
    text = (shards / "index.json").read_text()
    try:
        (shards / "index.json").write_text(json.dumps(mutated(index, data.draw)))
        try:
            use_folder(shards)
        except ShardError as error:
            assert "\n" not in str(error)
    finally:
        (shards / "index.json").write_text(text)


@pytest.mark.parametrize("name", ["train_01of02.safetensors", "val_01of01.safetensors"])
@quiet
@given(data=st.data())
def test_any_change_of_a_header_is_read_or_a_shard_error(shards, tmp_path, name, data):
    """With the checksum that the changed header has: somebody else may have made it."""
    header, tables, rest = parts(shards / name)
    changed = mutated(header, data.draw)
    for key in ("file_names", "image_size", "sizes", "classes"):  # lists inside of texts
        text = changed.get("__metadata__", {}) if isinstance(changed, dict) else {}
        if isinstance(text, dict) and key in text and data.draw(st.booleans()):
            value = mutated([json.loads(header["__metadata__"].get(key, "[[1, 2]]"))], data.draw)
            text[key] = json.dumps(value[0] if value else value)
    path = tmp_path / name
    path.write_bytes(rebuilt(changed, tables, rest))
    try:
        read_all(path)
    except ShardError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@quiet
@given(position=st.integers(0, 10**6), value=st.integers(-(2**31), 2**31 - 1))
def test_any_change_of_the_tables_is_read_or_a_shard_error(shards, tmp_path, position, value):
    header, tables, rest = parts(shards / "train_01of02.safetensors")
    words = np.frombuffer(tables[: len(tables) // 4 * 4], dtype=np.int32).copy()
    words[position % len(words)] = value
    path = tmp_path / "a.safetensors"
    path.write_bytes(rebuilt(header, words.tobytes() + tables[words.nbytes :], rest))
    try:
        reader = ShardReader(path)
        for row in range(len(reader)):
            boxes = reader.table(row).boxes
            assert (boxes >= 0).all() and (boxes[:, 2:] <= (20, 12)).all()
            reader[row]
    except ShardError:
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.update(shards=[{}]), "file is 'None'"),
        (lambda i: i.update(shards=[1]), "a shard is '1', not a mapping"),
        (lambda i: i.update(shards={}), "shards is '{}', not a list"),
        (lambda i: i.update(version=2), "version, 2 expected is '2'"),
        (lambda i: i["shards"][0].update(file=3), "file is '3'"),
        (lambda i: i["shards"][0].update(file="a.pt"), "the shard a.pt has partition 1"),
        (lambda i: i["shards"][0].update(partition=0), "partition is '0'"),
        (lambda i: i["shards"][0].update(partition=True), "partition is 'True'"),
        (lambda i: i["shards"][0].update(size=-1), "size is '-1'"),
        (lambda i: i["shards"][0].update(size=1.0), "size is '1.0'"),
        (lambda i: i["shards"][0].update(image_size=[10**5, 10**5]), "image_size is"),
        (lambda i: i["shards"][0].update(sha256="x"), "sha256 is 'x'"),
        (lambda i: i["shards"][0].pop("image_codec"), "image_codec is 'None'"),
        (lambda i: i["shards"].append(i["shards"][0]), "2 shards of the file name train_01of02"),
        *((lambda i, n=n: i["shards"][0].update(file=n), "file is ") for n in NAMES),
        *((lambda i, n=n: i["shards"][0].update(split=n), "split is ") for n in NAMES),
        *((lambda i, n=n: i["shards"][0].update(images=[n]), "images is ") for n in NAMES),
    ],
)
def test_an_index_is_refused_by_name(index, change, message):
    changed = copy.deepcopy(index)
    assert check_index(copy.deepcopy(index)) == index
    change(changed)
    with pytest.raises(SchemaError) as caught:
        check_index(changed)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, m: m.update(image_size='["a", "b"]'), "image_size is"),
        (lambda h, m: m.update(image_size="[12.0, 20.0]"), "image_size is"),
        (lambda h, m: m.update(image_size="[100000, 100000]"), "image_size is"),
        (lambda h, m: m.update(sizes="[[-1, -1]]"), "a size of sizes is"),
        (lambda h, m: m.update(sizes="[[1, 1]]"), "sizes of images are not those of its images"),
        (lambda h, m: m.pop("image_codec"), "image_codec is 'None'"),
        (lambda h, m: m.update(file_names="[" * 5000), "is not JSON"),
        (lambda h, m: m.update(partition="x"), "partition is 'x'"),
        (lambda h, m: h.update(more=h["images"]), "tensor more is unknown"),
        (lambda h, m: h["images"].update(dtype="F32"), "images has shape"),
        (lambda h, m: h["images"].update(data_offsets=[0, 1]), "lies at"),
        *(
            (
                lambda h, m, n=n: m.update(file_names=json.dumps([n] * 4)),
                "is not the name of a file",
            )
            for n in NAMES
        ),
    ],
)
def test_a_header_is_refused_by_name(shards, change, message):
    header, *_ = parts(shards / "train_01of02.safetensors")
    check_header(copy.deepcopy(header))
    change(header, header["__metadata__"])
    with pytest.raises(SchemaError) as caught:
        check_header(header)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "\ud800"])
def test_an_index_that_is_no_json(sources, tmp_path, content):
    write_shards(sources, tmp_path, split="train")
    (tmp_path / "index.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ShardError, match=r"index.json: not a shard index"):
        ShardReader(tmp_path)
    entries, changed = load_entries(tmp_path, ["train"], CITYSCAPES)
    assert changed and [*entries] == ["train_01of01.safetensors"], "packing restores it"


def test_a_header_longer_than_any_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.write((1 << 32).to_bytes(8, "little"))
        file.truncate(1 << 33)  # a hole, not 8 GB
    with pytest.raises(ShardError, match="a header of 4294967296 bytes"):
        ShardReader(path).file_names  # noqa: B018


def test_two_images_of_one_name_in_a_folder_are_refused(shards, index, tmp_path):
    """Of two partitions, with another ending, and in a single shard."""
    first, second = (s for s in index["shards"] if s["split"] == "train")
    changed = copy.deepcopy(index)
    for shard in changed["shards"]:
        if shard["file"] == second["file"]:
            shard["images"][0] = first["images"][0].replace(".png", ".jpg")
    (tmp_path / "index.json").write_text(json.dumps(changed))
    with pytest.raises(ShardError, match="2 images of train called aachen_000000_000019"):
        read_index(tmp_path)
    header, tables, rest = parts(shards / first["file"])
    header["__metadata__"]["file_names"] = json.dumps([first["images"][0]] * 4)
    (tmp_path / "a.safetensors").write_bytes(rebuilt(header, tables, rest))
    with pytest.raises(ShardError, match="4 images called aachen_000000_000019"):
        ShardReader(tmp_path / "a.safetensors").file_names  # noqa: B018

"""Reading weights without running them, writing them whole, and what cannot be read."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from d2_cityscapes.convert import CONVERSIONS, ConversionError, convert_file
from d2_cityscapes.convert.files import read_checkpoint, read_weights, write_weights
from d2_cityscapes.errors import D2CityscapesError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        for name, tensor in expected.items()
    )


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w, "iteration": 3}])
def test_reads_state_dicts_and_checkpoints(tmp_path, wrap):
    path = tmp_path / "weights.pth"
    torch.save(wrap(OrderedDict(WEIGHTS)), path)
    assert same(read_weights(path), WEIGHTS)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_pickled_arrays(tmp_path, protocol):
    """Detectron2's model zoo has pickles of protocol 2, with the names of numpy 1."""
    arrays = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
    arrays["scalar"] = np.float32(2.5)
    arrays["empty"] = np.zeros((0, 4), np.float16)
    arrays["columns"] = np.arange(6).reshape(2, 3).T  # not contiguous
    content = pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol=protocol)
    path = tmp_path / "weights.pkl"
    expected = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    for module in (b"numpy.core", b"numpy._core"):
        if protocol == 2:  # later ones count the letters
            content = content.replace(b"numpy._core", module)
        path.write_bytes(content)
        assert same(read_weights(path), expected)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_never_runs_what_a_file_says(tmp_path, suffix):
    victim, path = tmp_path / "victim", tmp_path / f"weights{suffix}"

    class Evil:
        def __reduce__(self):
            return open, (str(victim), "w")

    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"a": Evil()}}))
    else:
        torch.save({"model": {"a": Evil()}}, path)
    with pytest.raises(ConversionError, match="cannot be read as weights"):
        read_weights(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "cannot be read as weights"),
        ("a.pth", b"not at all", "cannot be read as weights"),
        ("a.pkl", b"\x80\x04\x95", "cannot be read as weights"),
        ("a.pkl", pickle.dumps({"blobs": {}}), "Caffe2"),
        ("a.pkl", pickle.dumps([1, 2]), "no weights in it"),
        ("a.pkl", pickle.dumps({"model": {}}), "no weights in it"),
        ("a.pkl", pickle.dumps({"model": {"x": "y"}}), "'x' is no tensor"),
        ("a.pkl", pickle.dumps({"x": np.array([None])}), "cannot be read as weights"),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=message) as error:
        read_weights(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_truncated_checkpoint_and_missing_file(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ConversionError, match="cannot be read as weights"):
        read_weights(path)
    for missing in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(ConversionError, match="no such file"):
            read_weights(missing)


def test_writes_what_it_reads_and_no_more_than_it_needs(tmp_path):
    large = torch.zeros(100_000)
    path = tmp_path / "new" / "weights.pth"
    write_weights(path, {**WEIGHTS, "view": large[:3]})
    assert same(read_weights(path), {**WEIGHTS, "view": torch.zeros(3)})
    assert path.stat().st_size < 10_000


def test_any_conversion_writes_safetensors(tmp_path):
    record, path = {"table": "cityscapes", "things": ["car"]}, tmp_path / "weights.safetensors"
    weights = {**WEIGHTS, "view": torch.zeros(100_000)[:3], "columns": torch.ones(2, 3).t()}
    write_weights(path, weights, record)
    assert same(read_weights(path), weights) and read_checkpoint(path)[1] == record
    assert path.stat().st_size < 1000
    with pytest.raises(ConversionError, match="0 ResNets"):
        convert_file("torchvision-deeplab", path, tmp_path / "b.safetensors")


def test_refuses_names_that_detectron2_reads_otherwise(tmp_path):
    with pytest.raises(ConversionError, match=r"name it \.pth"):
        write_weights(tmp_path / "weights.pkl", WEIGHTS)


def test_nothing_is_left_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.pth").mkdir()
    for path in (tmp_path / "file" / "weights.pth", tmp_path / "folder.pth"):
        with pytest.raises(D2CityscapesError, match="cannot be written"):
            write_weights(path, WEIGHTS)
    assert {p.name for p in tmp_path.rglob("*")} == {"file", "folder.pth"}


def test_unknown_conversion(tmp_path):
    with pytest.raises(ConversionError, match="no conversion 'tf'; there are torchvision-deeplab"):
        convert_file("tf", tmp_path / "a.pth", tmp_path / "b.pth")


def test_the_input_is_never_overwritten(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(WEIGHTS, path)
    (tmp_path / "link.pth").symlink_to(path)
    (tmp_path / "hard.pth").hardlink_to(path)
    for output in (tmp_path / "." / "a.pth", tmp_path / "link.pth", tmp_path / "hard.pth"):
        with pytest.raises(D2CityscapesError, match="is read here too"):
            convert_file("coco-to-cityscapes", path, output)
    assert same(read_weights(path), WEIGHTS)


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_every_conversion_names_a_missing_input(tmp_path, kind):
    missing = tmp_path / "none.pth"
    with pytest.raises(ConversionError, match="no such file") as error:
        convert_file(kind, missing, tmp_path / "out.pth")
    assert str(error.value).startswith(f"{missing}: ")
    assert not list(tmp_path.iterdir())


def test_class_records_travel(tmp_path):
    record = {"table": "cityscapes", "things": ["car"]}
    write_weights(tmp_path / "a.pth", WEIGHTS, record)
    assert read_checkpoint(tmp_path / "a.pth")[1] == record
    write_weights(tmp_path / "b.pth", WEIGHTS)
    assert read_checkpoint(tmp_path / "b.pth")[1] is None

"""The packing command, as a user runs, misuses and kills it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from d2_cityscapes.data import ShardReader
from d2_cityscapes.shards.writer import write_splits
from d2_cityscapes.sources.cityscapes import DEFAULT_PARTITIONS, find_splits


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def _run(script: str, arguments: list[str], output: int, error: int) -> None:
    sys.stdout, sys.stderr = os.fdopen(output, "w"), os.fdopen(error, "w", buffering=1)
    sys.argv = [script, *arguments]
    tqdm.set_lock(threading.RLock())  # else one for all forks, which one that is killed may hold
    runpy.run_path(script, run_name="__main__")


@pytest.fixture
def launch(repository, cityscapes_tree, tmp_path):
    """Start the command on `cityscapes_tree` and tmp_path/shards, in a process of its own that need
    not import everything again; gives the process and the ends of stdout and stderr."""

    def start(*arguments: str, cityscapes: Path = cityscapes_tree):
        where = ["--cityscapes", str(cityscapes), "--output", str(tmp_path / "shards")]
        (out, output), (err, error) = os.pipe(), os.pipe()
        script = str(repository / "datasets/prepare_shards.py")
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_run, args=(script, [*where, *arguments], output, error))
        process.start()
        os.close(output), os.close(error)
        return process, open(out), open(err)

    return start


@pytest.fixture
def call(launch):
    """Run the command to its end."""

    def run(*arguments: str, **options: Path) -> Done:
        process, output, error = launch(*arguments, **options)
        with output, error:
            written = error.read(), output.read()
        process.join()
        return Done(process.exitcode, written[1], written[0])

    return run


def _error(done: Done) -> str:
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


def test_subset_with_a_codec_and_verification(call, tmp_path):
    options = ["--splits", "train", "--partitions", "train=2", "--limit", "5"]
    done = call(*options, "--image-codec", "zstd", "--verify", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"train: 5 images in 2 shards, 0.00 GB, in {tmp_path}/shards\n"
    for bar in ("checking", "packing", "checksums train", "verifying train"):
        assert f"{bar}: 100%" in done.stderr
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    before = [path.stat().st_ino for path in shards]

    content = bytearray(shards[1].read_bytes())
    content[-1] ^= 1
    shards[1].write_bytes(content)
    again = call(*options, "--image-codec", "zstd", "--verify")
    assert f"{shards[1]}: SHA-256 differs" in _error(again)
    assert [path.stat().st_ino for path in shards] == before


def test_every_problem_of_every_split_is_listed_and_nothing_written(
    call, cityscapes_tree, tmp_path
):
    tree = tmp_path / "tree"
    shutil.copytree(cityscapes_tree, tree)
    lost = sorted(tree.glob("gtFine/*/*/*_instanceIds.png"))[2:12]  # of both splits
    for path in lost:
        path.unlink()
    done = call(cityscapes=tree)
    assert _error(done).startswith("error: 10 problems, listed above; nothing was written")
    listed = [line for line in done.stderr.splitlines() if line.endswith(": missing")]
    assert sorted(listed) == sorted(f"{path}: missing" for path in lost)
    assert not (tmp_path / "shards").exists()


def test_a_label_that_is_corrected_in_place_is_noticed(call, cityscapes_tree, tmp_path):
    """Its file keeps its size. That all files get other dates, as in a copy, is no change."""
    tree = tmp_path / "tree"
    shutil.copytree(cityscapes_tree, tree)
    options = ["--splits", "train", "--partitions", "train=1"]
    path = sorted(tree.glob("gtFine/train/*/*_instanceIds.png"))[0]
    # Pillow's encoder leaves pixels as they are without compression, so that sizes are equal
    ids = np.asarray(Image.open(path)).astype(np.uint16)
    Image.fromarray(ids).save(path, compress_level=0)
    size = path.stat().st_size
    assert call(*options, cityscapes=tree).returncode == 0
    for file in tree.rglob("*.png"):
        os.utime(file, (1, 1))
    assert call(*options, cityscapes=tree).returncode == 0
    Image.fromarray(np.where(ids == 7, 8, ids).astype(np.uint16)).save(path, compress_level=0)
    os.utime(path, (1, 1))
    assert path.stat().st_size == size
    done = call(*options, cityscapes=tree)
    assert "holds shards made from other images or settings (train_01of01" in _error(done)


def test_the_test_split_needs_no_annotations(call, cityscapes_tree, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(cityscapes_tree / "leftImg8bit/val", tree / "leftImg8bit/test")
    done = call("--splits", "test", "--partitions", "test=2", "--verify", cityscapes=tree)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("test: 8 images in 2 shards")
    reader = ShardReader(tmp_path / "shards", split="test")
    assert len(reader) == 8 and not reader[0].instance_ids.any() and len(reader.table(0)) == 0
    assert "no leftImg8bit/val" in _error(call("--splits", "val", cityscapes=tree))


def test_jpegs_in_this_layout_are_told_what_to_do(call, cityscapes_tree, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(cityscapes_tree, tree)
    for path in sorted(tree.glob("leftImg8bit/*/*/*.png")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    assert "leftImg8bit/train has .jpg files" in _error(call(cityscapes=tree))
    for path in sorted(tree.glob("leftImg8bit/*/*/*.jpg")):
        Image.open(path).convert("L").save(path.with_suffix(".png"))
    done = call(cityscapes=tree)
    assert "grey with 8 bits, expected RGB with 8 bits; convert it to RGB" in done.stderr
    assert _error(done).startswith("error: 16 problems")


def test_misuse_is_one_line(call, tmp_path):
    done = call("--cities", "bochum", "--partitions", "foo=3")
    assert _error(done) == done.stderr.strip()
    assert "partitions 'foo=3'; give SPLIT=N" in done.stderr
    assert not (tmp_path / "shards").exists()


def test_help_tells_all_options(call):
    done = call("--help")
    assert done.returncode == 0
    options = "cityscapes output splits partitions cities limit workers annotation-codec"
    for option in (*options.split(), "image-codec", "verify"):
        assert f"--{option}" in done.stdout


@pytest.fixture(scope="module")
def whole(cityscapes_tree, tmp_path_factory):
    """File name -> content of what an uninterrupted run writes."""
    output = tmp_path_factory.mktemp("whole")
    splits = find_splits(cityscapes_tree, ["train", "val"])
    write_splits(splits, output, partitions=DEFAULT_PARTITIONS)
    return _content(output)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _finished(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.safetensors")}


def test_killed_at_any_moment_it_finishes_what_is_left(launch, call, whole, tmp_path):
    """Killed from the outside when a file has appeared, again and again in one folder."""
    output, before = tmp_path / "shards", {}
    for moment in ("", ".train_0*", "train_02*", "train_05*", ".val_0*", "val_03*"):
        process, stdout, stderr = launch()
        while process.is_alive() and not any(tmp_path.glob(f"shards/{moment}")):
            process.join(0.002)
        process.kill()
        with stdout, stderr:
            stderr.read()  # comes to its end when the workers have gone as well
        process.join()
        now = _finished(output)
        assert process.exitcode in (-signal.SIGKILL, 0) and before.items() <= now.items()
        before = now
    assert call("--verify").returncode == 0
    assert before.items() <= _finished(output).items()
    assert _content(output) == whole


def test_killed_as_a_command(repository, cityscapes_tree, whole, call, tmp_path):
    """The same with a process that shares nothing with this one."""
    script = str(repository / "datasets/prepare_shards.py")
    where = ["--cityscapes", str(cityscapes_tree), "--output", str(tmp_path / "shards")]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", script, *where], stderr=subprocess.PIPE, env=environment
    ) as process:
        while process.poll() is None and not any(tmp_path.glob("shards/train_01*")):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
        process.kill()
    assert process.returncode in (-signal.SIGKILL, 0)
    before = _finished(tmp_path / "shards")
    assert call().returncode == 0
    assert before.items() <= _finished(tmp_path / "shards").items()
    assert _content(tmp_path / "shards") == whole

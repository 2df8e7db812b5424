"""One batch ahead: the same batches, copied and handed over in the order that a GPU needs."""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import Tensor

from d2_cityscapes import get_cfg
from d2_cityscapes.data.loader import build_train_loader
from d2_cityscapes.engine import trainer as trainer_module
from d2_cityscapes.engine.step.prefetch import Prefetcher, map_tensors
from d2_cityscapes.structures import IdMapMasks

SECONDS = 20  # until what another thread should do has failed


class Numbers:
    """A loader of [tensor(0)], [tensor(1)], ...; notes in `events` what is asked for."""

    seed = 3
    num_workers = 1

    def __init__(self, events=None, *, fails_at: int | None = None, end: int | None = None):
        self.events = [] if events is None else events
        self.asked = [threading.Event() for _ in range(20)]
        self._fails_at, self._end, self._position = fails_at, end, 0

    def __iter__(self):
        while self._position != self._end:
            number = self._position
            self.events.append(("fetch", number))
            self.asked[number].set()
            if number == self._fails_at:
                raise ValueError(f"batch {number}")
            self._position += 1
            yield [torch.tensor(number)]

    def state_dict(self):
        return {"seed": self.seed, "position": self._position}

    def load_state_dict(self, state):
        self._position = state["position"]


class Recorder:
    """A copy stream that notes what it is told; its copies are clones."""

    def __init__(self, events=None):
        self.events = [] if events is None else events

    def copy(self, tensor: Tensor) -> Tensor:
        self.events.append(("copy", tensor.tolist() if tensor.dim() == 0 else None))
        return tensor.clone()

    def wait(self) -> None:
        self.events.append(("wait", None))

    def hand_over(self, tensor: Tensor) -> Tensor:
        self.events.append(("hand over", tensor.tolist() if tensor.dim() == 0 else None))
        return tensor


def values(batches) -> list[int]:
    return [batch[0].item() for batch in batches]


# --- the order of things -------------------------------------------------------------------------


def test_the_next_batch_is_on_its_way_while_one_is_used():
    events: list[tuple] = []
    loader = Numbers(events)
    batches = iter(Prefetcher(loader, "cpu", stream=Recorder(events)))
    assert not events, "nothing happens before the first batch"
    for number in range(3):
        assert next(batches)[0] == number
        assert loader.asked[number + 1].wait(SECONDS), "nobody asked for it but the thread"
    assert not loader.asked[4].is_set(), "one ahead, not two"
    batches.close()
    steps = [("fetch", 0), ("copy", 0)]
    for number in range(3):
        steps += [
            ("wait", None),
            ("hand over", number),
            ("fetch", number + 1),
            ("copy", number + 1),
        ]
    assert events == steps


def test_batches_are_on_the_gpu_and_nobody_waited(fake_gpu):
    batches = iter(Prefetcher(Numbers(), "cuda"))
    with fake_gpu.watch() as seen:
        found = [next(batches)[0] for _ in range(3)]
    batches.close()
    assert seen.total == 0, seen.table()
    assert all(tensor.is_cuda for tensor in found)
    assert [tensor.item() for tensor in found] == [0, 1, 2]


def test_copies_and_batches_of_one_thread_each():
    """The first batch, which starts the workers, comes from the thread that asks."""
    threads = []

    class Watched(Recorder):
        def copy(self, tensor):
            threads.append(threading.current_thread())
            return super().copy(tensor)

    batches = iter(Prefetcher(Numbers(end=4), "cpu", stream=Watched()))
    assert values(batches) == [0, 1, 2, 3]
    assert threads[0] is threading.current_thread()
    assert len(set(threads[1:])) == 1 and threads[1] is not threads[0]
    assert not threads[1].is_alive()


def test_an_iteration_that_ends_leaves_no_thread():
    batches = iter(Prefetcher(Numbers(), "cpu", stream=Recorder()))
    assert values(islice(batches, 2)) == [0, 1]
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.mark.parametrize(("device", "workers"), [("cpu", 1), ("cpu", 0), ("cuda", 0)])
def test_without_a_gpu_or_workers_it_is_the_loader(device, workers):
    loader = Numbers()
    loader.num_workers = workers
    stream = Recorder() if device == "cuda" else None
    prefetcher = Prefetcher(loader, "cpu", stream=stream)
    assert values(islice(prefetcher, 3)) == [0, 1, 2]
    assert loader.events == [("fetch", 0), ("fetch", 1), ("fetch", 2)]
    assert stream is None or not stream.events
    assert prefetcher.state_dict() == loader.state_dict() == {"seed": 3, "position": 3}


def test_an_error_arrives_with_its_batch():
    batches = iter(Prefetcher(Numbers(fails_at=2), "cpu", stream=Recorder()))
    assert [next(batches)[0].item() for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="batch 2"):
        next(batches)


def test_an_error_of_the_first_batch():
    with pytest.raises(ValueError, match="batch 0"):
        next(iter(Prefetcher(Numbers(fails_at=0), "cpu", stream=Recorder())))


# --- where a run goes on -------------------------------------------------------------------------


def test_the_batch_that_waits_has_not_been_seen():
    loader = Numbers()
    prefetcher = Prefetcher(loader, "cpu", stream=Recorder())
    assert prefetcher.state_dict() == {"seed": 3, "position": 0}
    batches = iter(prefetcher)
    for seen in range(1, 4):
        next(batches)
        assert loader.asked[seen].wait(SECONDS)
        assert prefetcher.state_dict() == {"seed": 3, "position": seen}
    batches.close()
    assert values(islice(prefetcher, 2)) == [3, 4], "nor is it lost to the next iteration"
    prefetcher.load_state_dict({"seed": 3, "position": 7})
    assert prefetcher.state_dict() == {"seed": 3, "position": 7}
    assert values(islice(prefetcher, 2)) == [7, 8]


def shard_loader(workers: int):
    """8 scenes, augmented by everything that draws random numbers."""
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("cityscapes_shards_val",)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (40, 48, 64, 80), 200
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.MODEL.MASK_ON = True
    cfg.SEED = 3
    return build_train_loader(cfg)


def seen(batches) -> list[list[tuple]]:
    """Names, and checksums of pixels, boxes and id maps."""

    def checksum(tensor: Tensor) -> int:
        return zlib.crc32(tensor.numpy().tobytes())

    return [
        [
            (
                image["image_id"],
                checksum(image["image"]),
                checksum(image["instances"].gt_boxes.tensor),
                checksum(image["instances"].gt_masks.id_maps),
            )
            for image in batch
        ]
        for batch in batches
    ]


def test_a_stop_leaves_no_trace(datasets):
    """Shards, two worker processes: stopped with batches on their way, and gone on."""
    whole = seen(islice(shard_loader(workers=0), 9))
    first = Prefetcher(shard_loader(workers=2), "cpu", stream=Recorder())
    before = seen(islice(first, 4))
    state = first.state_dict()
    assert state == {"seed": 3, "position": 8}
    second = Prefetcher(shard_loader(workers=1), "cpu", stream=Recorder())
    second.load_state_dict(state)
    assert before + seen(islice(second, 5)) == whole
    assert second.seed == 3 and second.num_workers == 1


def test_training_keeps_its_own_random_numbers(datasets):
    def draw() -> tuple:
        return random.random(), np.random.rand(), torch.rand(1).item()

    def drawn(loader) -> list[tuple]:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        found = []
        for _ in islice(loader, 4):
            for _ in range(200):  # while the thread works
                found.append(draw())
                time.sleep(1e-4)
        return found

    expected = drawn(range(4))
    assert drawn(Prefetcher(shard_loader(workers=2), "cpu", stream=Recorder())) == expected


def test_a_training_resumed_with_it_is_one_without(
    repository, tmp_path, tiny_opts, datasets, monkeypatch
):
    """4 steps, and 2 of them again with batches fetched ahead: the same weights, to the bit."""

    def train(*opts: str, resume: bool) -> dict:
        args = argparse.Namespace(
            config_file=str(repository / "configs/demo/stage1.yaml"),
            opts=[
                *tiny_opts, "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2",
                "DATALOADER.NUM_WORKERS", "1", "OUTPUT_DIR", str(tmp_path), *opts,
            ],
            eval_only=False,
        )  # fmt: skip
        trainer_module.train(trainer_module.setup(args), resume=resume)
        return torch.load(tmp_path / "model_final.pth", weights_only=True)

    whole = train(resume=False)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    stream = Recorder()
    monkeypatch.setattr(trainer_module, "Prefetcher", partial(Prefetcher, stream=stream))
    halves = train("DATALOADER.PREFETCH", "True", resume=True)
    assert stream.events.count(("wait", None)) == 2
    assert whole["trainer"]["data"] == halves["trainer"]["data"] == {"seed": 1, "position": 8}
    assert all(tensor.equal(halves["model"][name]) for name, tensor in whole["model"].items())


# --- what is copied ------------------------------------------------------------------------------


def test_an_image_and_its_targets_are_five_copies():
    """However many masks there are: pixels, boxes, classes, and of masks the map and the ids."""
    count = 30
    instances = Instances((8, 16))
    instances.gt_boxes = Boxes(torch.rand(count, 4))
    instances.gt_classes = torch.arange(count)
    instances.gt_masks = IdMapMasks(torch.arange(128).reshape(8, 16), torch.arange(count))
    image = {"image": torch.rand(3, 8, 16), "instances": instances, "file_name": "a", "height": 8}
    stream = Recorder()
    (copied,) = map_tensors(stream.copy, [image])
    assert len(stream.events) == 5
    assert copied["file_name"] == "a" and copied["height"] == 8
    assert copied["image"].equal(image["image"]) and copied["image"] is not image["image"]
    found = copied["instances"]
    assert isinstance(found, Instances) and found.image_size == (8, 16) and len(found) == count
    assert isinstance(found.gt_boxes, Boxes) and isinstance(found.gt_masks, IdMapMasks)
    assert found.gt_masks.tensor.equal(instances.gt_masks.tensor)
    assert found.gt_masks.image_size == (8, 16)
    found.gt_boxes.tensor.zero_()
    assert instances.gt_boxes.tensor.any(), "the first is left alone"


def test_instances_move_each_map_once(monkeypatch):
    """What a model does itself, where nothing is prefetched."""
    moved: list[int] = []
    to = Tensor.to

    def counted(tensor, *args, **kwargs):
        moved.append(tensor.numel())
        return to(tensor, *args, **kwargs)

    instances = Instances((8, 16))
    instances.gt_masks = IdMapMasks(torch.arange(128).reshape(8, 16), torch.arange(30))
    monkeypatch.setattr(Tensor, "to", counted)
    instances.to(torch.device("cpu"))
    assert sorted(moved) == [30, 128]


def test_what_holds_no_tensor_is_shared():
    polygons = PolygonMasks([[np.array([0.0, 0, 4, 0, 4, 4])]])
    shape = torch.Size([2, 3])
    value = {"a": (1, [None, "b"]), "masks": polygons, "shape": shape, "x": (torch.ones(1), 2)}
    found = map_tensors(torch.neg, value)
    assert found["a"] == (1, [None, "b"]) and found["shape"] == shape
    assert found["masks"].polygons == polygons.polygons
    assert found["x"][0].item() == -1 and found["x"][1] == 2
    assert isinstance(found["x"], tuple) and isinstance(found["shape"], torch.Size)


# --- a user who has enough -----------------------------------------------------------------------


class Slow(torch.utils.data.IterableDataset):
    """A sample takes its time."""

    def __iter__(self):
        while True:
            time.sleep(0.3)
            yield torch.ones(1)


class SlowLoader(Numbers):
    def __iter__(self):
        return iter(torch.utils.data.DataLoader(Slow(), num_workers=1))


def test_an_interrupt_ends_it():
    process = subprocess.Popen(
        [sys.executable, __file__], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted"


def train_for_ever() -> None:
    for number, _ in enumerate(Prefetcher(SlowLoader(), "cpu", stream=Recorder())):
        if number == 1:
            print("training", flush=True)


if __name__ == "__main__":
    from d2_cityscapes.errors import run

    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    run(train_for_ever)

"""Numbers of a step reach the log without a wait for that step, as of their own iteration."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from detectron2.utils.events import EventStorage

from d2_cityscapes.modeling.execution.deferred_scalars import (
    flush_scalars,
    put_scalar_later,
    read_later,
)


def values(storage: EventStorage, name: str) -> list[tuple[float, int]]:
    return storage.history(name).values() if name in storage.histories() else []


def test_on_the_cpu_nothing_is_put_off():
    with EventStorage(3) as storage, storage.name_scope("head"):
        put_scalar_later("accuracy", torch.tensor(0.1))
        put_scalar_later("foreground", torch.tensor(7))
        assert storage.latest() == {
            "head/accuracy": (torch.tensor(0.1).item(), 3),
            "head/foreground": (7.0, 3),
        }
        flush_scalars(storage, wait=True)
        assert len(values(storage, "head/accuracy")) == 1


def test_a_step_has_one_copy_and_no_wait(fake_gpu):
    with EventStorage() as storage:
        for storage.iter in range(4):
            with fake_gpu.watch() as seen:
                with storage.name_scope("head"):
                    put_scalar_later("accuracy", torch.ones((), device="cuda") * storage.iter)
                put_scalar_later(
                    "count", torch.tensor(5).pin_memory().to("cuda", non_blocking=True)
                )
                flush_scalars(storage)
            assert seen.total == 0, seen.table()
            assert seen.operations["aten::cat"] == 1
            expected = [(float(i), i) for i in range(storage.iter)]
            assert values(storage, "head/accuracy") == expected, "those of the steps before"
        assert storage.iter == 3
        with fake_gpu.watch() as seen:
            flush_scalars(storage, wait=True)
        assert values(storage, "head/accuracy")[-1] == (3.0, 3)
        assert values(storage, "count") == [(5.0, i) for i in range(4)]


def test_what_a_gpu_has_not_done_is_waited_for(fake_gpu, monkeypatch):
    """The step before the last is, the last one not."""
    monkeypatch.setattr(torch.cuda.Event, "query", lambda _: False)
    with EventStorage() as storage:
        for storage.iter in range(3):
            put_scalar_later("loss", torch.ones((), device="cuda"))
            with fake_gpu.watch() as seen:
                flush_scalars(storage)
            assert seen.total == min(storage.iter, 1), seen.table()
        with fake_gpu.watch() as seen:
            flush_scalars(storage, wait=True)
        assert seen.total == 1 and len(values(storage, "loss")) == 3


def test_without_flushes_later_iterations_bring_them(fake_gpu):
    """As under Detectron2's own trainer, which knows nothing of them."""
    with EventStorage() as storage:
        for storage.iter in range(4):
            for _ in range(2):
                put_scalar_later("loss", torch.full((), float(storage.iter), device="cuda"))
        assert values(storage, "loss") == [(0.0, 0), (0.0, 0), (1.0, 1), (1.0, 1)]


def test_numbers_of_any_shape_arrive_in_a_row(fake_gpu):
    found: list[list[float]] = []
    with EventStorage() as storage:
        read_later(torch.arange(4.0, device="cuda").reshape(2, 2), found.append)
        read_later(torch.zeros(0, device="cuda"), found.append)
        read_later(torch.full((1,), 9.0, device="cuda"), found.append)
        flush_scalars(storage, wait=True)
    assert found == [[0.0, 1.0, 2.0, 3.0], [], [9.0]]


def test_what_is_found_wrong_comes_out_of_the_flush(fake_gpu):
    def refuse(numbers: list[float]) -> None:
        raise FloatingPointError(numbers)

    with EventStorage(2) as storage:
        read_later(torch.ones(1, device="cuda"), refuse)
        flush_scalars(storage)
        storage.iter = 3
        with pytest.raises(FloatingPointError):
            flush_scalars(storage)
        assert storage.iter == 3
        flush_scalars(storage, wait=True)


def test_a_storage_that_ends_takes_them_along(fake_gpu):
    with EventStorage() as storage:
        put_scalar_later("loss", torch.ones((), device="cuda"))
    gone = weakref.ref(storage)
    del storage
    gc.collect()
    assert gone() is None

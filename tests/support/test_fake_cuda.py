"""What the pretended CUDA device promises."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, ReadTooEarly


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(3, device="cuda"),
        lambda: torch.ones(3).to("cuda"),
        lambda: torch.ones(3).cuda()[1:],
        lambda: torch.tensor([1.0, 2.0], device="cuda:0"),
        lambda: torch.zeros_like(torch.ones(3, device="cuda")),
        lambda: torch.ones(3, device="cuda").new_zeros(2),
        lambda: torch.ones(3, device="cuda").bool() & True,
        lambda: torch.ones(4, device="cuda")[torch.tensor([0, 2])],  # an index of the CPU
        lambda: torch.ones(4, device="cuda") + torch.tensor(1.0),  # a number
        lambda: torch.ones(4, 4, device="cuda").data.t().contiguous(),
        lambda: torch.ones(2, device="cuda").double().requires_grad_().detach(),
    ],
)
def test_what_is_made_of_the_gpu_is_on_it(fake_gpu, make):
    tensor = make()
    assert tensor.is_cuda and not tensor.is_cpu
    assert tensor.device == torch.device("cuda:0") and tensor.get_device() == 0
    assert not torch.ones(3).is_cuda and not tensor.cpu().is_cuda


@pytest.mark.parametrize(
    "mix",
    [
        lambda gpu, cpu: gpu + cpu,
        lambda gpu, cpu: torch.cat([gpu, cpu]),
        lambda gpu, cpu: torch.where(gpu > 0, gpu, cpu),
        lambda gpu, cpu: torch.nn.functional.l1_loss(gpu, cpu),
        lambda gpu, cpu: gpu.gather(0, cpu.long()),
    ],
)
def test_tensors_of_both_places_do_not_mix(fake_gpu, mix):
    with pytest.raises(RuntimeError, match="same device"):
        mix(torch.ones(3, device="cuda"), torch.ones(3))


def test_mistakes_can_be_noted_instead():
    with FakeCuda(strict=False) as gpu:
        assert (torch.ones(3, device="cuda") + torch.ones(3)).tolist() == [2, 2, 2]
        assert torch.ones(3, device="cuda").numpy().sum() == 3
    assert len(gpu.mistakes) == 2
    assert all("test_fake_cuda.py" in line for _, line in gpu.mistakes)


def test_numpy_does_not_read_the_gpu(fake_gpu):
    tensor = torch.ones(3, device="cuda")
    with pytest.raises(TypeError, match="numpy"):
        tensor.numpy()
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(tensor)


@pytest.mark.parametrize(
    "operation",
    [
        lambda: torch.ones(2, 2, dtype=torch.int64, device="cuda").mm(
            torch.ones(2, 2, dtype=torch.int64, device="cuda")
        ),
        lambda: torch.ones(2, 2, dtype=torch.uint16, device="cuda") + 1,
    ],
)
def test_operations_without_a_kernel_are_refused(fake_gpu, operation):
    with pytest.raises(RuntimeError, match="not implemented for"):
        operation()


def test_there_is_one_card(fake_gpu):
    assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    with pytest.raises(RuntimeError, match="invalid device"):
        torch.ones(3, device="cuda:1")
    with pytest.raises(RuntimeError, match="invalid device"):
        torch.ones(3).to("cuda:1")


def test_the_meta_device_is_what_it_was(fake_gpu):
    for shape in (torch.ones(3).to("meta"), torch.ones(3, device="cuda").to("meta").half()):
        assert shape.is_meta and (shape + 1).to(torch.float32).is_meta
        assert torch.zeros_like(shape).is_meta and not shape.is_cuda


def test_gradients_are_on_the_gpu(fake_gpu):
    layer = torch.nn.Linear(3, 2).to("cuda")
    layer(torch.ones(4, 3, device="cuda")).sum().backward()
    assert layer.weight.is_cuda and layer.weight.grad.is_cuda
    with pytest.raises(RuntimeError, match="same device"):
        layer(torch.ones(4, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_has_the_lists_of_cuda(fake_gpu, dtype):
    layer = torch.nn.Linear(3, 2).to("cuda")
    with torch.autocast("cuda", dtype=dtype):
        out = layer(torch.ones(4, 3, device="cuda"))
        assert out.dtype is dtype
        assert out.softmax(1).dtype is out.exp().dtype is out.sum().dtype is torch.float32
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            torch.nn.functional.binary_cross_entropy(out.float().sigmoid(), torch.ones_like(out))


def test_half_precision_adds_in_float32(fake_gpu):
    ones = torch.ones(1, 4099, dtype=torch.bfloat16, device="cuda")
    assert (ones @ ones.T).item() == 4096  # 4099, rounded once: a sum in bfloat16 stops at 256


def test_waits_are_counted_by_line(fake_gpu):
    x = torch.arange(4.0, device="cuda")
    with fake_gpu.watch() as seen:
        x.sum().item(), bool(x.any()), x.tolist(), x[x > 1], x.nonzero(), x.unique(), x.cpu()
        torch.zeros(3).to("cuda")
    assert seen.total == 8
    assert all("test_fake_cuda.py" in place for _, place, _ in seen.waits)
    assert "bool mask index" in seen.table() and "8 waits" in seen.table()


def test_what_does_not_wait(fake_gpu):
    x = torch.arange(4.0, device="cuda")
    pinned = torch.zeros(1 << 20).pin_memory()
    with fake_gpu.watch() as seen:
        x.mean().to("cpu", non_blocking=True)
        pinned.to("cuda", non_blocking=True)
        x[x > 1] = 0.0  # becomes masked_fill
        torch.nn.functional.one_hot(x.long(), 4)
    assert seen.total == 0
    assert seen.copied_in == 4 << 20 and seen.copied_out == 4


def test_launches_leave_out_views(fake_gpu):
    x = torch.ones(4, 4, device="cuda")
    with fake_gpu.watch() as seen:
        x.view(16)[2:].unsqueeze(0)
        assert seen.launches == 0
        x + x
        torch._foreach_mul_([x, x], 2.0)
    assert seen.launches == 2


def test_launches_by_line():
    with FakeCuda(lines=True) as gpu, gpu.watch() as seen:
        x = torch.ones(4, device="cuda")
        x + x
    assert sum(seen.places.values()) == seen.launches - 1 == 1  # without the factory


def test_a_copy_must_not_be_read_too_early(fake_gpu):
    copy = torch.ones(3, device="cuda").to("cpu", non_blocking=True)
    event = torch.cuda.current_stream().record_event()
    later = torch.ones(3, device="cuda").to("cpu", non_blocking=True)
    for read in (copy.tolist, copy.numpy, copy[0].item, later.tolist):
        with pytest.raises(ReadTooEarly):
            read()
    event.synchronize()
    assert copy.tolist() == [1, 1, 1]
    with pytest.raises(ReadTooEarly):
        later.tolist()
    torch.cuda.synchronize()
    assert later.tolist() == [1, 1, 1]


def test_pinned_memory_and_streams_know_their_place(fake_gpu):
    assert torch.ones(3).pin_memory().is_pinned() and not torch.ones(3).is_pinned()
    with pytest.raises(RuntimeError, match="cannot pin"):
        torch.ones(3, device="cuda").pin_memory()
    torch.ones(3, device="cuda").record_stream(torch.cuda.Stream())
    with pytest.raises(RuntimeError, match="record_stream"):
        torch.ones(3).record_stream(torch.cuda.Stream())


def test_memory_of_live_tensors(fake_gpu):
    x = torch.zeros(1 << 20, device="cuda")
    view = x[10:]
    assert torch.cuda.memory_allocated() == 4 << 20
    del x
    assert torch.cuda.memory_allocated() == 4 << 20  # the view keeps it
    del view
    assert torch.cuda.memory_allocated() == 0 and torch.cuda.max_memory_allocated() == 4 << 20
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == 0


def test_a_card_can_be_full():
    with FakeCuda(memory=1 << 20):
        torch.zeros(1 << 18, device="cuda")
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.zeros(1 << 20, device="cuda")


def test_threads_take_part(fake_gpu):
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.ones(3, device="cuda") + 1))
    with fake_gpu.watch() as seen:
        thread.start()
        thread.join()
    assert found[0].is_cuda and seen.operations["aten::add"] == 1


def test_an_outer_card_sleeps_meanwhile(fake_gpu):
    outer = torch.ones(3, device="cuda")
    with FakeCuda(name="Other") as other, other.watch() as seen:
        assert torch.cuda.get_device_name() == "Other"
        assert (torch.ones(3, device="cuda") + 1).is_cuda
    assert torch.cuda.get_device_name() == "Fake GPU"
    assert outer.is_cuda and (outer + 1).is_cuda and seen.operations["aten::add"] == 1


@pytest.mark.no_fake_gpu("it sleeps, and is there")
def test_nothing_of_it_stays():
    before = (torch.Tensor.to, torch.ones, torch.cuda.is_available, torch.autocast)
    with FakeCuda():
        assert torch.Tensor.to is not before[0]
    assert (torch.Tensor.to, torch.ones, torch.cuda.is_available, torch.autocast) == before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.ones(2, dtype=torch.bfloat16).exp().dtype is torch.bfloat16


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_is_that_of_the_cpu(scaled):
    def weights(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
        ).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device, enabled=scaled, init_scale=4.0)
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(torch.rand(2, 3, 8, 8).to(device)).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    on_cpu = weights("cpu")
    with FakeCuda():
        on_gpu = weights("cuda")
    assert all(a.equal(b) for a, b in zip(on_cpu, on_gpu, strict=True))

"""A pretended CUDA device, for machines without one: finds mistakes of device, counts waits.

    from fake_cuda import FakeCuda

    with FakeCuda() as gpu:
        model = model.to("cuda")
        with gpu.watch("step") as seen:
            model(images.to("cuda"))["loss"].backward()
    print(seen.table())

Inside of the block ``torch.cuda.is_available()`` is True and ``device="cuda"`` works everywhere.
All numbers are computed by the CPU kernels, in real CPU memory, with the real autograd; results in
float32 are those of the CPU, to the bit. Products and convolutions in half precision are computed
in float32 and rounded, as GPUs do, inside of the block on the CPU too: there results in half
precision are those of `device="cpu"`, to the bit. A tensor is "on the GPU" if its *storage* is in
our books: views, `.data`, saved tensors and what C++ code makes of it are then too. On top of that:

- `.device`, `.is_cuda`, `.is_pinned()`, `.get_device()`, `.type()` tell the pretended place.
- An operation on tensors of both places raises RuntimeError, as CUDA does. Allowed, as there: 0-dim
  CPU tensors in pointwise operations, CPU tensors as indices, copies.
- `.numpy()` and `numpy.asarray` of a GPU tensor raise TypeError.
- Operations that CUDA has no kernel for raise (matrix products of integers, bilinear upsampling of
  bytes, ...; `rules.NO_CUDA_KERNEL`). `record_stream` and `pin_memory` refuse the wrong place.
- Every operation for which the host would wait for the GPU is counted, with the line of code that
  asked for it: `.item()`, `bool()`, `.tolist()`, `.cpu()`, `nonzero`, indexing with a bool mask,
  `unique`, `bincount`, ..., and also copies *to* the GPU that are not both pinned and non_blocking.
- A host read of a `non_blocking` copy from the GPU, before an event, stream or device was
  synchronized after it, raises `ReadTooEarly`.
- Under ``torch.autocast("cuda")`` CPU autocast runs, changed to CUDA's lists of operations (float32
  for softmax, cross_entropy, sum, pow, ...; no `binary_cross_entropy`). GradScaler works.
- `torch.cuda.memory_allocated` and `max_memory_allocated` count the bytes of live GPU storages:
  no workspaces, no rounding, no fragments, and CPU kernels may keep other things than CUDA's.
- The number of operations (about: kernel launches) is counted by name.

What it cannot show: races between streams (all runs in order), speed, CUDA's own rounding, kernels'
limits of shared memory, compiled kernels (torch.compile must stay off), DDP, CUDA graphs. Count of
waits inside of single operations is by a list (`rules.WAITS`). torch.profiler counts operations
twice.

Import what uses torch.jit.script (detectron2, d2_cityscapes.engine.trainer) before the block. New
threads started inside of it take part. Processes do not see the GPU: neither loader workers nor
commands in a process of their own.

As a gate in a test (the fixture `fake_gpu` enters it):

    trainer = Trainer(cfg)                       # MODEL.DEVICE cuda
    trainer.run_step()                           # raises where tensors of both places meet
    with fake_gpu.watch() as seen:
        trainer.run_step()
    assert seen.total <= 80, seen.table()  # host waits; seen.launches, ...

Modules: `device` (the card), `places` (the books of storages), `watch` (what is counted),
`kernels` (every operation), `rules` (what is known of CUDA's operations), `streams`, and what
replaces the Python side of PyTorch: `tensor_methods`, `factories`, `cuda_module`, `surroundings`,
`autocast`. `python -m fake_cuda` shows what it finds.
"""

from fake_cuda.device import FakeCuda
from fake_cuda.places import ReadTooEarly
from fake_cuda.watch import Watch

__all__ = ["FakeCuda", "ReadTooEarly", "Watch"]

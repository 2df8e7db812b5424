"""A pretended CUDA device for tests on machines without one."""

from fake_cuda.device import FakeCuda, ReadTooEarly, Watch

__all__ = ["FakeCuda", "ReadTooEarly", "Watch"]

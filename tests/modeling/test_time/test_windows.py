"""TEST.SLIDING_WINDOW: against a slow version, in the memory of a window."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from d2_cityscapes.modeling.test_time.windows import SlidingWindows, starts

CLASSES = 4


class Places(nn.Module):
    """Scores that depend on the pixels and on where in its window one lies; notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def forward(self, batched_inputs):
        (inputs,) = batched_inputs
        x = inputs["image"].float()
        _, h, w = x.shape
        assert (inputs["height"], inputs["width"]) == (h, w)
        self.seen.append((h, w))
        down, across = torch.arange(h)[:, None].expand(h, w), torch.arange(w)[None].expand(h, w)
        maps = [x[0], x[1] + down, x[2] + across, x.mean(0) + down * across]
        return [{"sem_seg": torch.stack(maps)}]


def _slow(image: torch.Tensor, size, stride, output) -> torch.Tensor:
    """Pixel by pixel: the mean over all windows that hold it; then PyTorch's resize."""
    _, h, w = image.shape
    height, width = min(size[0], h), min(size[1], w)
    total, count = torch.zeros(CLASSES, h, w, dtype=torch.float64), torch.zeros(h, w)
    tops = [t for t in range(0, h, stride[0]) if t + height < h] + [h - height]
    lefts = [t for t in range(0, w, stride[1]) if t + width < w] + [w - width]
    for top in tops:
        for left in lefts:
            window = image[:, top : top + height, left : left + width]
            own = Places()([{"image": window, "height": height, "width": width}])[0]["sem_seg"]
            total[:, top : top + height, left : left + width] += own
            count[top : top + height, left : left + width] += 1
    assert count.min() > 0
    return F.interpolate((total / count)[None], output, mode="bilinear", align_corners=False)[0]


sides = st.integers(1, 23)


@settings(max_examples=60, deadline=None)
@given(st.data(), sides, sides, sides, sides, st.booleans())
def test_it_is_the_mean_over_the_windows(data, h, w, height, width, same):
    size = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    stride = data.draw(st.integers(1, size[0])), data.draw(st.integers(1, size[1]))
    output = (h, w) if same else (height, width)
    generator = torch.Generator().manual_seed(h * w)
    image = torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator)
    inputs = {"image": image, "height": output[0], "width": output[1]}
    expected = _slow(image, size, stride, output)
    found = SlidingWindows(Places(), size, stride)([inputs])[0]["sem_seg"]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-3)
    labels = SlidingWindows(Places(), size, stride, labels=True)([inputs])[0]["sem_seg"]
    best = expected.max(dim=0).values
    taken = expected.gather(0, labels[None].long())[0]
    assert labels.shape == output and labels.dtype == torch.uint8
    torch.testing.assert_close(taken, best, rtol=1e-5, atol=1e-3)


def test_where_windows_begin():
    assert starts(10, 4, 3) == [0, 3, 6]
    assert starts(11, 4, 3) == [0, 3, 6, 7]
    assert starts(4, 4, 3) == [0]


def test_the_network_never_sees_more_than_a_window():
    model = Places()
    image = torch.zeros(3, 20, 50, dtype=torch.uint8)
    SlidingWindows(model, (8, 16), (8, 12))([{"image": image}])
    assert set(model.seen) == {(8, 16)} and len(model.seen) == 3 * 4


def test_labels_take_the_memory_of_a_row_of_windows():
    """No tensor of the size of all scores is made: 400 rows, of which 8 are in work."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                largest = max(largest, result.numel())
            return result

    image = torch.zeros(3, 400, 40, dtype=torch.uint8)
    inputs = [{"image": image, "height": 600, "width": 60}]
    with Watch():
        SlidingWindows(Places(), (8, 16), (4, 8), labels=True)(inputs)
    assert largest <= CLASSES * 16 * 60
    with Watch():
        SlidingWindows(Places(), (8, 16), (4, 8))(inputs)
    assert largest == CLASSES * 600 * 60

"""Colour jitter: greys stay grey, hues turn, and all of it stays in range."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from d2_cityscapes.data.augmentation.color_jitter import ColorJitter, ColorTransform, color_matrix

LUMA = np.array([0.299, 0.587, 0.114])
rng = np.random.default_rng(0)
PIXELS = torch.from_numpy(rng.integers(0, 256, (3, 21, 34), dtype=np.uint8))


def draws(count: int = 400, **options) -> list:
    np.random.seed(0)
    jitter = ColorJitter(**options)
    return [jitter.get_transform(np.zeros((2, 2, 3), np.uint8)) for _ in range(count)]


def test_nothing_drawn_is_nothing_done():
    np.testing.assert_allclose(color_matrix(1.0, 1.0, 0.0), np.eye(3), atol=1e-12)
    nothing = sum(not isinstance(t, ColorTransform) for t in draws())
    assert 10 < nothing < 45, "one of sixteen"
    same = ColorTransform(np.eye(3), np.zeros(3))
    assert same.apply_planes(PIXELS).equal(PIXELS)


def test_no_saturation_is_the_luma():
    grey = color_matrix(1.0, 0.0, 0.0) @ [200, 100, 50]
    np.testing.assert_allclose(grey, [LUMA @ [200, 100, 50]] * 3, rtol=1e-3)


@pytest.mark.parametrize("hue", [-36, 10, 36])
@pytest.mark.parametrize("saturation", [0.5, 1.5])
def test_hue_and_saturation_keep_greys_and_nearly_keep_luma(hue, saturation):
    matrix = color_matrix(1.0, saturation, hue)
    np.testing.assert_allclose(matrix @ [1, 1, 1], [1, 1, 1], atol=1e-12)
    colors = rng.uniform(0, 255, (3, 100))
    np.testing.assert_allclose(LUMA @ (matrix @ colors), LUMA @ colors, atol=1.5)


@pytest.mark.parametrize("degrees", [-36, -20, 20, 36])
def test_hues_turn_about_as_in_hsv(degrees):
    """On average by that angle; for no colour by less than half, or more than twice of it."""
    turns = []
    for hue in np.arange(0, 1, 0.05):
        color = np.array(colorsys.hsv_to_rgb(hue, 0.4, 0.6))
        turned = colorsys.rgb_to_hsv(*(color_matrix(1.0, 1.0, degrees) @ color))[0]
        turns.append(((turned - hue + 0.5) % 1 - 0.5) * 360)
    ratio = np.abs(turns) / abs(degrees)
    assert 0.8 < ratio.mean() < 1.2 and ratio.min() > 0.45 and ratio.max() < 2.0
    assert len({*np.sign(turns)}) == 1, "all the same way"


def test_the_ranges_are_ssds():
    """32 grey levels, and factors of 0.5 to 1.5; of greys only these two are seen."""
    offsets, contrasts = [], []
    for transform in draws(1000):
        if isinstance(transform, ColorTransform):
            contrast = float(transform.matrix[0].sum())
            contrasts.append(contrast)
            offsets.append(float(transform.offset[0]) / contrast)
    assert 0.5 <= min(contrasts) < 0.53 and 1.47 < max(contrasts) <= 1.5001
    assert -32.001 <= min(offsets) < -30 and 30 < max(offsets) <= 32.001
    assert 0.4 < np.mean(np.isclose(contrasts, 1, atol=1e-5)) < 0.6, "half have a contrast"


def test_it_rounds_and_clips():
    """Against float64, pixel by pixel; the odd size goes through blocks of any kind."""
    for transform in draws(40):
        if not isinstance(transform, ColorTransform):
            continue
        exact = np.einsum("ij,jhw->ihw", transform.matrix.double().numpy(), PIXELS.double().numpy())
        exact = np.clip(exact + transform.offset.double().numpy()[:, None, None], 0, 255)
        found = transform.apply_planes(PIXELS).numpy()
        assert np.abs(found - exact).max() <= 0.5001


def test_large_images_are_done_in_blocks():
    large = torch.from_numpy(rng.integers(0, 256, (3, 300, 301), dtype=np.uint8))
    transform = ColorTransform(color_matrix(1.2, 1.3, 20), np.array([3.0, 4.0, 5.0]))
    whole = transform.apply_planes(large)
    assert whole[:, :100].equal(transform.apply_planes(large[:, :100]))
    interleaved = large.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert transform.apply_planes(interleaved).equal(whole)


def test_the_channel_order_is_that_of_the_image():
    for rgb, bgr in zip(draws(50), draws(50, image_format="BGR"), strict=True):
        if isinstance(rgb, ColorTransform):
            assert bgr.apply_planes(PIXELS.flip(0)).flip(0).equal(rgb.apply_planes(PIXELS))

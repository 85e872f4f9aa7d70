"""Downsampling: means over areas and Pillow's bicubic, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inrfast.inverse import Downsample


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_bicubic_is_that_of_pillow(rows, columns, down, across, seed):
    image = np.random.default_rng(seed).random((rows * down, columns * across), dtype=np.float32)
    found = Downsample(image.shape, (down, across), "bicubic")(image)
    expected = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(found, expected, atol=2e-6)  # rounding of fp32


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_area_is_the_mean_over_blocks(rows, columns, down, across, seed):
    image = np.random.default_rng(seed).random((rows * down, columns * across, 2))
    found = Downsample(image.shape[:2], (down, across))(image)
    expected = image.reshape(rows, down, columns, across, 2).mean((1, 3))
    np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize(
    ("shape", "factor", "method", "message"),
    [
        ((8, 9), 2, "area", "factor must divide the sizes of the grid"),
        ((8, 8), 0, "area", "factor must be at least 1, got 0"),
        ((8, 8), 2.0, "area", "factor must be an integer"),
        ((8, 8), (2,), "area", "one for each of 2 axes, got 1"),
        ((8, 8), 2, "bicbic", "Did you mean 'bicubic'"),
        ((2, 2, 2, 2), 2, "area", "one to three axes"),
    ],
)
def test_bad_input_is_refused(shape, factor, method, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Downsample(shape, factor, method)


def test_constants_stay():
    for method in ("area", "bicubic"):
        found = Downsample((12, 8), 4, method)(torch.ones(12, 8, dtype=torch.float64))
        torch.testing.assert_close(found, torch.ones(3, 2, dtype=torch.float64))

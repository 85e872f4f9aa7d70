"""Biharmonic interpolation is the least-squares solution, and scikit-image's away from the edges."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from skimage.restoration import inpaint_biharmonic

from inrfast.errors import MemoryBudgetError
from inrfast.inverse.biharmonic import biharmonic


def laplacian(height: int, width: int) -> np.ndarray:
    """Return the Laplacian as a dense matrix, written out pixel by pixel."""
    matrix = np.zeros((height * width, height * width))
    for row in range(height):
        for column in range(width):
            for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                if 0 <= row + down < height and 0 <= column + right < width:
                    matrix[row * width + column, row * width + column] -= 1
                    matrix[row * width + column, (row + down) * width + column + right] += 1
    return matrix


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_the_sum_of_squared_laplacians_is_least(
    height: int, width: int, channels: int, share: float, seed: int
) -> None:
    draws = np.random.default_rng(seed)
    values, known = draws.random((height, width, channels)), draws.random((height, width)) < share
    known[draws.integers(height), draws.integers(width)] = True
    given_ = np.where(known[..., None], values, np.nan)  # what is missing may be anything
    got = biharmonic(torch.from_numpy(given_), torch.from_numpy(known)).numpy()
    np.testing.assert_array_equal(got[known], values[known])
    matrix, missing = laplacian(height, width), ~known.ravel()
    flat = values.reshape(-1, channels)
    best = np.linalg.lstsq(matrix[:, missing], -matrix[:, ~missing] @ flat[~missing], rcond=None)[0]
    reached = ((matrix @ got.reshape(-1, channels)) ** 2).sum()
    least = ((matrix[:, missing] @ best + matrix[:, ~missing] @ flat[~missing]) ** 2).sum()
    assert least - 1e-9 <= reached <= 1.0001 * least + 1e-9


def test_it_is_scikit_images_where_all_holes_are_inside() -> None:
    photograph = data.astronaut()[100:228, 150:278] / 255
    known = np.ones((128, 128), bool)
    draws = np.random.default_rng(0)
    for top, left in draws.integers(8, 108, (40, 2)):
        known[top : top + 9, left : left + 11] = False
    expected = inpaint_biharmonic(np.where(known[..., None], photograph, 0), ~known, channel_axis=-1)
    got = biharmonic(torch.from_numpy(photograph), torch.from_numpy(known)).numpy()
    # Conjugate gradients end at a relative residual of 1e-5; theirs is clipped to the range of the known pixels.
    low, high = photograph[known].min(0), photograph[known].max(0)
    np.testing.assert_allclose(np.clip(got, low, high), expected, atol=3e-3)


def test_it_is_linear() -> None:
    draws = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 24, 30, 1, generator=draws, dtype=torch.float64)
    known = torch.rand(24, 30, generator=draws) < 0.4
    both = biharmonic(2 * a - b, known)
    torch.testing.assert_close(both, 2 * biharmonic(a, known) - biharmonic(b, known), atol=1e-3, rtol=0)


def test_a_budget_is_kept() -> None:
    with pytest.raises(MemoryBudgetError, match=r"interpolating 64x64 pixels needs .* smaller picture"):
        biharmonic(torch.zeros(64, 64, 1), torch.ones(64, 64, dtype=torch.bool), memory_budget=2**16)

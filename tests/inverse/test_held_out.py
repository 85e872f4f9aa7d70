"""Held-out pixels are known ones that lie as the missing do; the share is the least-squares one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from inrfast.inverse.held_out import COUNT, MOST, USUAL, best_share, held_out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.02, 0.98), st.integers(0, 2**31), st.booleans())
def test_held_out_pixels_are_known_and_few(height: int, width: int, share: float, seed: int, whole: bool) -> None:
    draws = np.random.default_rng(seed)
    known = torch.from_numpy(draws.random((height, width)) < share)
    if whole:  # one hole in place of scattered pixels
        known = torch.ones(height, width, dtype=torch.bool)
        known[: height // 2, : width // 2] = False
    found = held_out(known, seed)
    assert not bool((found & ~known).any())
    assert int(found.sum()) <= MOST * int(known.sum())
    assert torch.equal(found, held_out(known, seed))


def test_they_lie_as_the_missing_ones_do() -> None:
    """Scattered where those are scattered, as far from what is known as those where they are squares."""

    def depth(holes: torch.Tensor) -> float:
        return float(distance_transform_edt(holes.numpy())[holes.numpy()].mean())

    scattered = torch.rand(128, 128, generator=torch.Generator().manual_seed(0)) < 0.5
    squares = torch.ones(128, 128, dtype=torch.bool)
    draws = np.random.default_rng(0)
    for top, left in draws.integers(0, 112, (12, 2)):
        squares[top : top + 12, left : left + 12] = False
    for known in (scattered, squares):
        found = held_out(known, 1)
        assert int(found.sum()) > 0.05 * int(known.sum())
        # A held-out pixel is as deep among unknown ones as a missing pixel is, within a third.
        both = distance_transform_edt((~known | found).numpy())
        assert both[found.numpy()].mean() == pytest.approx(depth(~known), rel=0.34)


def test_the_share_is_that_of_least_squares() -> None:
    draws = np.random.default_rng(0)
    adds = torch.from_numpy(draws.standard_normal((20000, 3)))
    noise = torch.from_numpy(draws.standard_normal((20000, 3)))
    for share, expected in ((0.4, 0.4), (2.0, 1.0), (-1.0, 0.0)):
        assert best_share(share * adds + noise, adds) == pytest.approx(expected, abs=0.02)
    few = best_share(adds[:COUNT], adds[:COUNT])  # so few weigh as much as what is usual
    assert few == pytest.approx((1 + USUAL) / 2)
    assert best_share(adds[:0], adds[:0]) == USUAL
    assert best_share(adds, 0 * adds) == USUAL

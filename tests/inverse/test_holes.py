"""Ranges around holes are those of a walk through each, and clipping to them adds no value and no colour."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.inverse.holes import Ranges, ranges_of_holes


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 0.9), st.integers(0, 2**31))
def test_ranges_are_those_of_the_known_pixels_around_a_hole(height: int, width: int, share: float, seed: int) -> None:
    draws = np.random.default_rng(seed)
    values, known = draws.random((height, width, 2)), draws.random((height, width)) < share
    known[draws.integers(height), draws.integers(width)] = True
    low, high = ranges_of_holes(torch.from_numpy(values), torch.from_numpy(known))
    for row, column in np.ndindex(height, width):
        if known[row, column]:
            expected = [values[row, column]]
        else:  # walk through the hole
            hole, around, to_see = set(), [], [(row, column)]
            while to_see:
                y, x = to_see.pop()
                if not (0 <= y < height and 0 <= x < width) or (y, x) in hole:
                    continue
                if known[y, x]:
                    around.append(values[y, x])
                    continue
                hole.add((y, x))
                to_see += [(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
            expected = around
        np.testing.assert_array_equal(low[row, column], np.min(expected, 0))
        np.testing.assert_array_equal(high[row, column], np.max(expected, 0))


def test_no_value_and_no_colour_appears_that_is_not_around() -> None:
    draws = np.random.default_rng(0)
    values = torch.from_numpy(draws.random((20, 24, 3)) * [1, 0.2, 0.1])  # reds alone
    known = torch.ones(20, 24, dtype=torch.bool)
    known[5:11, 6:14], known[15:17, 2:9] = False, False
    wild = torch.from_numpy(draws.normal(0.5, 1, (20, 24, 3)))
    got = Ranges(values, known).clipped(torch.where(known[..., None], values, wild))
    torch.testing.assert_close(got[known], values[known], atol=1e-12, rtol=0)
    low, high = ranges_of_holes(values, known)
    assert bool(((got >= low) & (got <= high)).all())
    greens, around = (own[..., 1] - own[..., 0] for own in (got, values))
    # Clipping the channels last may move a colour that was within all ranges.
    assert float(greens[~known].max()) <= float(around[known].max()) + 0.1
    grey = Ranges(values[..., :1], known).clipped(wild[..., :1])
    assert bool(((grey >= low[..., :1]) & (grey <= high[..., :1])).all())

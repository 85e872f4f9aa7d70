"""Masks: what is kept, where it goes back to, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.inverse import Mask


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.floats(0.01, 1), st.integers(0, 99))
def test_random_and_textural_masks_keep_the_share_asked_for(shape, share, seed):
    kept = round(share * math.prod(shape))
    if kept == 0:
        with pytest.raises(ValueError, match="share must keep"):
            Mask.random(shape, share, seed)
        return
    for mask in (Mask.random(shape, share, seed), Mask.texture(shape, share, 1.0, seed)):
        assert mask.known.shape == tuple(shape)
        assert int(mask.known.sum()) == kept == mask.shape_out[0]
    assert torch.equal(Mask.random(shape, share, seed).known, Mask.random(shape, share, seed).known)


def test_a_mask_takes_the_known_values_and_puts_them_back():
    known = np.random.default_rng(0).random((7, 5)) < 0.5
    image = np.random.default_rng(1).random((7, 5, 3))
    for given_mask in (known, known.astype(np.uint8) * 255, torch.from_numpy(known).float()):
        mask = Mask(given_mask, shape=(7, 5))
        np.testing.assert_array_equal(mask(image), image[known])
        np.testing.assert_array_equal(mask.adjoint(mask(image)), image * known[..., None])


def test_patches_are_missing_and_textures_hang_together():
    mask = Mask.patches((10, 12), [((1, 2), (3, 4)), ((5, 5), (5, 7))])
    expected = torch.ones(10, 12, dtype=torch.bool)
    expected[1:4, 2:6] = False
    expected[5:10, 5:12] = False
    assert torch.equal(mask.known, expected)

    def edges(own):
        return int((own.known[1:] != own.known[:-1]).sum())

    assert edges(Mask.texture((64, 64), 0.5)) < edges(Mask.random((64, 64), 0.5)) / 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.ones(4, 5), shape=(5, 4)), "size of the signal, .5, 4., got .4, 5."),
        (lambda: Mask(torch.zeros(4, 5)), "all 20 points missing"),
        (lambda: Mask(torch.full((2, 2), float("nan"))), "got NaN"),
        (lambda: Mask(torch.ones(2, 2, dtype=torch.complex64)), "booleans or real"),
        (lambda: Mask(torch.ones(0, 2)), "at least one point"),
        (lambda: Mask.random((4, 4), 0.0), "share must be above 0"),
        (lambda: Mask.random((4, 4), 1.5), "share must keep between"),
        (lambda: Mask.texture((4, 4), 0.001), "share must keep between"),
        (lambda: Mask.patches((4, 4), [((2, 2), (3, 1))]), "must lie in the grid"),
        (lambda: Mask.patches((4, 4), [((2,), (3,))]), "a start and a size for each of 2 axes"),
        (lambda: Mask.patches((2, 2), [((0, 0), (2, 2))]), "all 4 points missing"),
    ],
)
def test_bad_masks_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()

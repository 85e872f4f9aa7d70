"""Radon: the sinograms of scikit-image, sums that are kept, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import radon

from inrfast.inverse import Radon


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.integers(1, 7), st.booleans(), st.integers(0, 99))
def test_it_is_the_transform_of_scikit_image(side, count, circle, seed):
    random = np.random.default_rng(seed)
    image, angles = random.random((side, side)), random.uniform(-90, 270, count)
    if circle:  # scikit-image warns of what lies outside, and cuts it off
        at = np.arange(side) - side // 2
        image = image * (at[:, None] ** 2 + at**2 <= (side // 2) ** 2)
    expected = radon(image, angles, circle=circle)
    np.testing.assert_allclose(Radon(side, angles, circle=circle)(image), expected, atol=1e-10)


def test_blocks_of_angles_change_nothing(monkeypatch):
    image = torch.rand(12, 12, 2, dtype=torch.float64)
    at_once = Radon(12, 10)(image)
    monkeypatch.setattr("inrfast.inverse.radon.SAMPLES_AT_ONCE", 3 * 144)
    torch.testing.assert_close(Radon(12, 10)(image), at_once)


def test_angles_are_spread_over_half_a_turn():
    torch.testing.assert_close(Radon(4, 4).angles, torch.tensor([0.0, 45, 90, 135], dtype=torch.float64))


def test_angles_are_copied():
    angles = np.array([0.0, 30.0])
    operator = Radon(4, angles)
    angles[:] = 0
    assert operator.angles.tolist() == [0.0, 30.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Radon((4, 5)), "square image"),
        (lambda: Radon(4, 0), "angles must be at least 1"),
        (lambda: Radon(4, [0.0, float("nan")]), "must be finite"),
        (lambda: Radon(4, []), "must not be empty"),
        (lambda: Radon(4, 4.0), "a whole number of angles, or their degrees, .* got 4.0 .float."),
        (lambda: Radon(4, "4"), "a whole number of angles, or their degrees, .* got '4'"),
        (lambda: Radon(4, np.array(4.0)), "a whole number of angles, or their degrees, .* of shape .."),
        (lambda: Radon(4, [0.0, "b"]), r"angles\[1\] must be"),
        (lambda: Radon(4, np.array([1j])), "a whole number of angles, or their degrees, .*complex128"),
        (lambda: Radon(4, 3, circle=1), "circle must be True or False"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()

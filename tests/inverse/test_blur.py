"""Blur: SciPy's convolution at every boundary, Gaussians and boxes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from inrfast.inverse import Blur

SCIPY = {"zero": "constant", "edge": "nearest", "mirror": "mirror", "wrap": "wrap"}


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(list(SCIPY)), st.integers(1, 3), st.integers(0, 999))
def test_it_is_the_convolution_of_scipy(data, boundary, axes, seed):
    random = np.random.default_rng(seed)
    shape = [data.draw(st.integers(3, 8)) for _ in range(axes)]
    kernel = random.standard_normal([data.draw(st.integers(1, 5)) for _ in range(axes)])
    signal = random.standard_normal((*shape, 2))
    found = Blur(shape, kernel, boundary)(signal)
    for channel in range(2):
        expected = ndimage.convolve(signal[..., channel], kernel, mode=SCIPY[boundary])
        np.testing.assert_allclose(found[..., channel], expected, atol=1e-12)


def test_kernels_are_copied():
    kernel, image = np.ones((3, 3)), np.random.default_rng(0).random((5, 6))
    operator = Blur((5, 6), kernel)
    before = operator(image)
    kernel[:] = 0
    np.testing.assert_array_equal(operator(image), before)


@pytest.mark.parametrize("boundary", list(SCIPY))
def test_gaussian_and_box_are_those_of_scipy(boundary):
    image = np.random.default_rng(0).random((21, 18))
    found = Blur.gaussian(image.shape, (1.3, 0.7), boundary)(image)
    expected = ndimage.gaussian_filter(image, (1.3, 0.7), mode=SCIPY[boundary], truncate=4.0)
    np.testing.assert_allclose(found, expected, atol=1e-13)
    found = Blur.box(image.shape, (3, 5), boundary)(image)
    np.testing.assert_allclose(found, ndimage.uniform_filter(image, (3, 5), mode=SCIPY[boundary]), atol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur((4, 4), torch.ones(3)), "kernel must have 2 axes"),
        (lambda: Blur((4, 4), torch.full((3, 3), float("nan"))), "must be finite"),
        (lambda: Blur((4, 4), torch.ones(9, 9), "mirror"), "reaches .* at most"),
        (lambda: Blur((4, 4), torch.ones(3, 3), "zeros"), "Did you mean 'zero'"),
        (lambda: Blur((4, 4), torch.ones(3, 3, dtype=torch.complex64)), "must be real"),
        (lambda: Blur((4, 4), []), "got none"),
        (lambda: Blur((2, 2, 2, 2), torch.ones(1, 1, 1, 1)), "one to three axes"),
        (lambda: Blur.gaussian((4, 4), -1.0), "sigma must be at least 0"),
        (lambda: Blur.box((4, 4), 0), "width must be at least 1"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()

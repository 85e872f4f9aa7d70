"""Fourier measurements: NumPy's transforms, padding, oversampling, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.inverse import Fourier, FourierMagnitude, check_adjoint
from inrfast.inverse.fourier import Pad

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.floats(1, 3), st.integers(0, 99))
def test_magnitudes_are_those_of_numpy(shape, oversampling, seed):
    signal = np.random.default_rng(seed).standard_normal(shape)
    operator = FourierMagnitude(shape, oversampling)
    padded = [math.ceil(round(oversampling * n, 9)) for n in shape]
    np.testing.assert_allclose(
        operator(signal), np.abs(np.fft.fftn(signal, s=padded, axes=range(len(shape)))), atol=1e-12
    )
    parseval = (operator(signal).square()).sum() / math.prod(padded)
    np.testing.assert_allclose(parseval, np.square(signal).sum(), rtol=1e-10)
    assert operator.shape_out == operator.padded == tuple(padded)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.data())
def test_padding_is_an_isometry_whose_adjoint_crops(shape, data):
    pad = Pad(shape, [n + data.draw(st.integers(0, 4)) for n in shape])
    assert check_adjoint(pad) < 1e-13
    x = torch.randn(*shape, 2)
    torch.testing.assert_close(pad.adjoint(pad(x)), x, rtol=0, atol=0)


def test_coefficients_are_those_of_numpy():
    signal, known = np.random.default_rng(0).standard_normal((5, 6)), np.random.default_rng(1).random((5, 6)) < 0.4
    np.testing.assert_allclose(Fourier((5, 6), known)(signal), np.fft.fftn(signal, norm="ortho")[known], atol=1e-13)
    full = Fourier((5, 6))
    np.testing.assert_allclose(full.adjoint(full(signal)).reshape(5, 6), signal, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FourierMagnitude((4, 4), 0.9), "oversampling must be at least 1"),
        (lambda: FourierMagnitude((4, 4), float("nan")), "must be finite"),
        (lambda: FourierMagnitude((4, 4), 2.0, epsilon=-1.0), "epsilon must be at least 0"),
        (lambda: FourierMagnitude((4, 4)).loss(-torch.ones(8, 8)), "magnitudes, zero or more, got 64 negative"),
        (lambda: FourierMagnitude((4, 4)).loss(torch.ones(4, 4)), "must be those of FourierMagnitude"),
        (lambda: FourierMagnitude((4, 4)).adjoint(torch.ones(8, 8)), "not linear"),
        (lambda: Fourier((4, 4), torch.zeros(4, 4)), "all 16 points missing"),
        (lambda: Fourier((4, 4), torch.ones(4, 5)), "size of the signal"),
        (lambda: Pad((4, 4), (4, 3)), "as large as shape"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()

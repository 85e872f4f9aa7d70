"""Encodings against their kernels: inner products have closed forms that no column order can hide."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import random_coords
from torch import nn

import inrfast as inr

F64 = torch.float64


def built(encoding, d, seed=0):
    return encoding.build(d, torch.Generator().manual_seed(seed), torch.device("cpu"), F64)


@given(st.integers(1, 3), st.integers(0, 5), st.integers(0, 1000))
def test_polynomial_inner_products(d, degree, seed):
    coefficients = [1.0 / (k + 1) for k in range(degree + 1)]
    encoding = built(inr.Polynomial(degree, coefficients), d)
    x = random_coords(6, d, seed).double()
    z = encoding(x)
    assert z.shape[1] == encoding.out_features == math.comb(degree + d, d)
    expected = sum(a * (x @ x.t()) ** k for k, a in enumerate(coefficients))
    torch.testing.assert_close(z @ z.t(), expected)


@given(st.integers(1, 3), st.integers(1, 20), st.integers(0, 1000))
def test_random_fourier_inner_products(d, n, seed):
    encoding = built(inr.RandomFourier(n, 3.0), d, seed)
    x = random_coords(5, d, seed).double()
    z = encoding(x)
    assert z.shape == (5, 2 * n)
    phase = 2 * math.pi * (x[:, None] - x[None]) @ encoding.frequencies.t()
    torch.testing.assert_close(z @ z.t(), phase.cos().sum(-1))
    torch.testing.assert_close(z[:, :n] ** 2 + z[:, n:] ** 2, torch.ones(5, n, dtype=F64))


def test_random_fourier_frequencies_have_the_asked_deviation():
    frequencies = built(inr.RandomFourier(20000, 7.0), 2).frequencies
    assert float(frequencies.std()) == pytest.approx(7.0, rel=0.02)
    assert abs(float(frequencies.mean())) < 0.15


@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 1000))
def test_positional_encoding_columns(d, n, seed):
    encoding = built(inr.PositionalEncoding(n), d)
    x = random_coords(4, d, seed).double()
    expected = {
        round(float(f(2**k * math.pi * x[2, j])), 9) for j in range(d) for k in range(n) for f in (torch.sin, torch.cos)
    }
    z = encoding(x)
    assert z.shape[1] == encoding.out_features == 2 * n * d
    assert {round(float(v), 9) for v in z[2]} == expected


def test_encodings_are_buffers_drawn_with_the_networks_seed():
    make = lambda seed: inr.INR(2, 1, width=4, hidden_layers=1, encoding=inr.RandomFourier(3), seed=seed)  # noqa: E731
    a, b, c = make(1), make(1), make(2)
    assert torch.equal(a.encoding.frequencies, b.encoding.frequencies)
    assert not torch.equal(a.encoding.frequencies, c.encoding.frequencies)
    assert "encoding.frequencies" in a.state_dict()
    assert "encoding.frequencies" not in dict(a.named_parameters())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: inr.RandomFourier(0), ValueError, "n must be at least 1"),
        (lambda: inr.RandomFourier(4, -1.0), ValueError, "sigma must be above"),
        (lambda: inr.INR(2, 1, encoding=inr.RandomFourier(4, 1e300)), ValueError, "overflows torch.float32"),
        (lambda: inr.RandomFourier(frequencies=[[1.0, 2.0], [3.0]]), TypeError, "numbers of shape"),
        (lambda: inr.RandomFourier(frequencies=[1.0, 2.0]), ValueError, "must have 2 dimensions"),
        (lambda: inr.RandomFourier(3, frequencies=[[1.0, 2.0]]), ValueError, "n must be 1, the number of frequencies"),
        (lambda: inr.INR(3, 1, encoding=inr.RandomFourier(frequencies=[[1.0, 2.0]])), ValueError, r"\(n, 3\), got"),
        (lambda: inr.RandomFourier(trainable="no"), TypeError, "trainable must be True or False, got 'no'"),
        (lambda: inr.encodings.Concatenate(), ValueError, "at least one encoding"),
        (lambda: inr.encodings.Concatenate(nn.Linear(2, 2)), TypeError, "takes inrfast encodings, got Linear"),
        (lambda: inr.encodings.from_config({"name": "RandomFurier"}), ValueError, "Did you mean 'RandomFourier'"),
        (lambda: inr.PositionalEncoding(1.5), TypeError, "n must be an integer"),
        (lambda: inr.Polynomial(-1), ValueError, "degree"),
        (lambda: inr.Polynomial(2, [1.0, 1.0]), ValueError, "3 numbers"),
        (lambda: inr.Polynomial(1, [1.0, -1.0]), ValueError, "coefficients must be at least"),
    ],
)
def test_bad_input_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()

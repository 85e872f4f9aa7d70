"""Bounds of norms hold for every spectrum and scale, as often as stated, for products that are off by what was said."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_spectra import matrix_with, spectra

from inrfast.linalg.norm_bounds import norm_bound
from inrfast.linalg.partition import Whole

FAILURE = 1e-6


def bound(product, n, seed=0, failure=FAILURE, **options):
    return norm_bound(product, torch.zeros(n, dtype=torch.float64), Whole(n), failure, seed, **options)


@given(spectra(most=60), st.integers(-100, 100), st.booleans(), st.integers(1, 6), st.integers(0, 10**6))
def test_the_norm_lies_between_the_bounds(values, exponent, indefinite, most, seed):
    values = values / values.max() * 10.0**exponent
    if indefinite:
        values = values * (2 * torch.rand(len(values), dtype=torch.float64) - 1)
    norm, n = float(values.abs().max()), len(values)
    matrix = matrix_with(values, seed)
    found = bound(lambda v: matrix @ v, n, seed, errors=1e-13 * norm, most=most)
    assert found.lower <= norm * (1 + 1e-12)
    assert found.upper >= norm * (1 - 1e-12)
    if most == 6:  # the sixth root of what hides the direction
        assert found.upper <= 1.01 * norm * (n**0.5 * 10 / FAILURE ** (1 / 8)) ** (1 / 6)


@given(st.integers(2, 40), st.floats(-6, -0.5), st.booleans(), st.booleans(), st.integers(1, 6), st.integers(0, 10**6))
def test_errors_that_hide_the_direction_are_in_the_bound(n, exponent, absolute, relative, most, seed):
    """The worst errors: along the direction of the norm, against what the product has there."""
    values = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 2
    values[0] = 1.0
    a, b = absolute * 10.0**exponent, relative * 10.0 ** (2 * exponent - 1)

    def product(v):
        image = values.unsqueeze(1) * v
        image[0] -= (a * v.norm(dim=0) + b * image.norm(dim=0)).minimum(image[0].abs()) * image[0].sign()
        return image

    found = bound(product, n, seed, errors=lambda before, after: (a * before, 1.01 * b * after), most=most)
    assert found.upper >= 1


def test_the_bound_fails_no_more_often_than_stated():
    """Where one direction is all there is, the probability is exact."""
    failure, count = 0.2, 400

    def of_rank_one(v):
        return torch.cat([v[:1], torch.zeros_like(v[1:])])

    wrong = sum(bound(of_rank_one, 3, seed, failure, most=2).upper < 1 for seed in range(count))
    assert wrong <= failure * count + 4 * math.sqrt(failure * count)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_finite_is_not_bounded(number):
    assert bound(lambda v: v * number, 5).upper == math.inf


def test_zero_has_the_norm_zero_and_a_stop_is_heeded():
    found = bound(lambda v: 0 * v, 5)
    assert (found.lower, found.upper, found.products) == (0, 0, 1)
    assert 0 < bound(lambda v: 0 * v, 5, errors=1e-3).upper < 0.1
    assert bound(lambda v: v, 5, enough=lambda b: True).products == 1

"""Streamed singular values against 50-digit arithmetic and matrices whose singular values are known."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.errors import ResolutionError
from inrfast.linalg.tsqr import StreamedGram, StreamedQR, singular_values


def random_matrix(n, d, decades, seed):
    """A matrix whose columns fall off over ``decades`` powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -decades, d)


def exact_singular_values(matrix):
    with mpmath.workdps(50):
        values = mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False)
        return sorted(values, reverse=True)


def lauchli(d, eps):
    """A row of ones above ``eps`` times the identity: sigma = sqrt(d + eps^2) once and eps (d - 1) times (Lauchli)."""
    return torch.cat([torch.ones(1, d, dtype=torch.float64), eps * torch.eye(d, dtype=torch.float64)])


@settings(max_examples=20)
@given(
    n=st.integers(1, 24),
    d=st.integers(1, 6),
    decades=st.floats(0, 14),
    chunk=st.integers(1, 24),
    seed=st.integers(0, 10**6),
)
@pytest.mark.parametrize("kind", [StreamedGram, StreamedQR])
def test_true_values_lie_within_the_stated_bounds(kind, n, d, decades, chunk, seed):
    matrix = random_matrix(n, d, decades, seed)
    stream = kind(d)
    for rows in matrix.split(chunk):
        stream.add(rows)
    found, truth = stream.singular_values(), exact_singular_values(matrix)
    assert len(found.values) == min(n, d)
    for lower, upper, exact in zip(found.lower.tolist(), found.upper.tolist(), truth, strict=False):
        assert lower <= exact <= upper


@pytest.mark.parametrize("chunk", [512, 7000])
@pytest.mark.parametrize("kind", [StreamedGram, StreamedQR])
def test_long_sums_stay_within_the_stated_bounds(kind, chunk):
    """Also in the long chunks that a GPU gets, whose error is no larger for a Gram matrix."""
    generator = torch.Generator().manual_seed(0)
    d = 40
    truth = torch.logspace(0, -14, d, dtype=torch.float64)
    left = torch.linalg.qr(torch.randn(20_000, d, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    stream = kind(d)
    for rows in (left * truth @ right.t()).split(chunk):
        stream.add(rows)
    found = stream.singular_values()
    assert kind is StreamedQR or found.error < 1e-13
    rounding = 1e-15  # of the matrix itself, whose singular values are only nearly those it was made from
    assert bool((found.lower <= truth + rounding).all() and (truth - rounding <= found.upper).all())


def test_tsqr_resolves_what_the_gram_matrix_cannot():
    matrix = lauchli(8, 1e-11)
    gram, qr = StreamedGram(8), StreamedQR(8)
    for rows in matrix.split(3):
        gram.add(rows)
        qr.add(rows)
    assert qr.singular_values().rank(1e-12).lower == 8
    torch.testing.assert_close(
        qr.singular_values().values[1:], torch.full((7,), 1e-11, dtype=torch.float64), rtol=1e-4, atol=0
    )
    with pytest.raises(ResolutionError, match="below the floor"):
        gram.singular_values().rank(1e-12)
    assert 1e-8 < gram.singular_values().floor < 1e-6


def test_the_gram_matrix_is_left_where_its_floor_is_too_high():
    def source():
        return lauchli(200, 1e-9).split(50)

    assert singular_values(source, 1e-5).method == "gram"
    for rtol in (1e-7, 1e-12):  # the Gram matrix is tried for the first, in vain
        found = singular_values(source, rtol)
        assert found.method == "tsqr"
        assert found.floor <= rtol
    assert found.rank(1e-12).lower == 200


@pytest.mark.parametrize("kind", [StreamedGram, StreamedQR])
def test_leading_columns_are_a_matrix_of_their_own(kind):
    matrix = random_matrix(50, 7, 3, 1)
    stream = kind(7)
    for rows in matrix.split(11):
        stream.add(rows)
    expected = torch.linalg.svdvals(matrix[:, :4])
    torch.testing.assert_close(stream.singular_values(4).values, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e200])
def test_squares_that_over_or_underflow_do_no_harm(scale):
    found = singular_values(lambda: [scale * torch.eye(5, dtype=torch.float64)], 1e-3)
    assert (found.rank(1e-3).lower, found.rank(1e-3).upper) == (5, 5)


def test_a_zero_matrix_has_rank_zero():
    found = singular_values(lambda: [torch.zeros(5, 3)], 1e-3)
    assert (found.rank(1e-3).lower, found.rank(1e-3).upper) == (0, 0)
    assert (found.stable_rank(), found.effective_rank()) == (0.0, 0.0)


def test_measures_of_equal_and_single_values():
    equal = singular_values(lambda: [3.0 * torch.eye(6)], 1e-3)
    assert equal.stable_rank() == pytest.approx(6)
    assert equal.effective_rank() == pytest.approx(6)
    single = singular_values(lambda: [torch.ones(9, 4)], 1e-3)
    assert single.stable_rank() == pytest.approx(1)
    assert single.effective_rank() == pytest.approx(1, abs=1e-6)
    assert float(single.values[0]) == pytest.approx(6)


@pytest.mark.parametrize(
    ("source", "rtol", "error", "message"),
    [
        ([], 1e-3, ValueError, "at least one chunk"),
        ([torch.ones(2, 3), torch.ones(2, 4)], 1e-3, ValueError, "3 columns"),
        ([torch.ones(2, 3), torch.full((1, 3), math.nan)], 1e-3, ValueError, "finite"),
        ([torch.ones(2, 3, dtype=torch.int64)], 1e-3, TypeError, "floating"),
        ([torch.ones(3)], 1e-3, ValueError, "2 dimensions"),
        ([torch.ones(0, 3)], 1e-3, ValueError, "empty"),
        ([torch.ones(2, 3)], 0.0, ValueError, "rtol"),
        ([torch.ones(2, 3)], math.nan, ValueError, "rtol"),
        ([torch.ones(2, 3)], "small", TypeError, "rtol"),
    ],
)
def test_bad_input_is_named(source, rtol, error, message):
    with pytest.raises(error, match=message):
        singular_values(lambda: source, rtol)

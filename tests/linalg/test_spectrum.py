"""Ranks as intervals: they contain the truth for matrices whose spectrum is known by construction."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.errors import ResolutionError
from inrfast.linalg.spectrum import RankInterval, dense_spectrum


def matrix_with(values, seed):
    """A symmetric matrix with the given eigenvalues and random eigenvectors, and a bound on its rounding error."""
    n = len(values)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = (q * values) @ q.t()
    return (matrix + matrix.t()) / 2, 2 * n * 2.2e-16 * float(values.max())


@given(st.integers(2, 60), st.floats(0.5, 12), st.integers(0, 10), st.integers(0, 10**6))
def test_interval_contains_the_rank(n, decades, zeros, seed):
    values = torch.logspace(0, -decades, n, dtype=torch.float64)
    values[max(1, n - zeros) :] = 0
    matrix, error = matrix_with(values, seed)
    s = dense_spectrum(matrix, error, 1e-8, n)
    assert ((s.eigenvalues - values).abs() <= s.upper_error).all()
    for rtol in (1e-1, 1e-3, 1e-6, 1e-8):
        interval = s.rank(rtol)
        assert int((values > rtol).sum()) in interval
        assert interval.upper - interval.lower <= 1
    assert s.stable_rank() == pytest.approx(float(values.sum()), rel=1e-9)


def test_clusters_at_the_threshold_open_the_interval():
    values = torch.tensor([1.0, 1e-4 * (1 + 1e-15), 1e-4 * (1 - 1e-15), 1e-9], dtype=torch.float64)
    matrix, error = matrix_with(values, 0)
    interval = dense_spectrum(matrix, error, 1e-6, 4).rank(1e-4)
    assert (interval.lower, interval.upper) == (1, 3)
    assert 2 in interval
    assert str(interval) == "[1, 3]"
    assert str(RankInterval(3, 3, 0.1)) == "3"


def test_below_the_floor_nothing_is_claimed():
    matrix, error = matrix_with(torch.ones(10, dtype=torch.float64), 0)
    s = dense_spectrum(matrix, error, 1e-30, 10)
    with pytest.raises(ResolutionError, match="floor"):
        s.rank(s.floor / 2)
    assert s.rank(s.floor * 2).lower == 10


def test_zero_operator_has_rank_zero_and_the_bound_is_kept():
    s = dense_spectrum(torch.eye(6, dtype=torch.float64), 0.0, 1e-6, 4)
    assert s.rank(1e-3).upper == 6  # never below the proven lower bound
    zero = dense_spectrum(torch.zeros(3, 3, dtype=torch.float64), 0.0, 1e-6, 3)
    assert zero.rank(1e-3).upper == 0


def test_effective_rank_of_equal_and_single_eigenvalues():
    assert dense_spectrum(torch.eye(7, dtype=torch.float64), 0.0, 1e-6, 7).effective_rank() == pytest.approx(7)
    single = torch.zeros(4, 4, dtype=torch.float64)
    single[0, 0] = 3.0
    assert dense_spectrum(single, 0.0, 1e-6, 4).effective_rank() == pytest.approx(1)


def test_questions_that_need_more_are_refused():
    matrix, error = matrix_with(torch.linspace(1, 2, 6, dtype=torch.float64), 1)
    few = dense_spectrum(matrix, error, 1e-6, 6, k=2)
    with pytest.raises(ResolutionError, match="needs all 6"):
        few.effective_rank()
    with pytest.raises(ValueError, match="eigenvectors=True"):
        few.energy(torch.ones(6))
    full = dense_spectrum(matrix, error, 1e-6, 6, eigenvectors=True)
    with pytest.raises(ValueError, match="6 rows"):
        full.energy(torch.ones(5))
    with pytest.raises(ValueError, match="not be zero"):
        full.energy(torch.zeros(6))
    with pytest.raises(ValueError, match="y0 must have"):
        full.predict(torch.ones(6), torch.ones(6, 2), 0.1, 3)
    with pytest.raises(ValueError, match="rtol must be above"):
        full.rank(0.0)


@given(st.integers(2, 40), st.floats(0.5, 8), st.floats(-12, -1), st.integers(0, 10**6))
def test_an_error_of_the_jacobian_moves_small_eigenvalues_less(n, decades, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    sigma = torch.logspace(0, -decades, n, dtype=torch.float64)
    disturbance = torch.randn(n, n, generator=generator, dtype=torch.float64)
    error = 10.0**exponent
    disturbance *= error / torch.linalg.matrix_norm(disturbance, 2)
    moved = left * sigma @ right + disturbance
    s = dense_spectrum(moved @ moved.t(), 4e-16 * n, 1e-13, n).with_jacobian_error(1.0000001 * error)
    truth = sigma.square()
    lower, upper = s.bounds()
    assert (lower <= truth).all()
    assert (truth <= upper).all()
    assert ((s.eigenvalues - truth).abs() <= s.upper_error).all()
    for rtol in (1e-1, 1e-4, 1e-9):
        if rtol > s.floor:
            assert int((truth > rtol).sum()) in s.rank(rtol)


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_energy_of_several_signals_is_the_mean_of_theirs(count, seed):
    matrix, error = matrix_with(torch.logspace(0, -3, 8, dtype=torch.float64), seed)
    s = dense_spectrum(matrix, error, 1e-6, 8, eigenvectors=True)
    signals = torch.randn(8, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    alone = torch.stack([s.energy(signal) for signal in signals.t()])
    sizes = torch.logspace(-200, 200, count, dtype=torch.float64)  # a signal counts alike whatever its size
    torch.testing.assert_close(s.energy(signals * sizes), alone.mean(0))
    torch.testing.assert_close(s.energy(signals).sum(), torch.ones((), dtype=torch.float64))
    signals[:, -1] = 0
    with pytest.raises(ValueError, match=f"column {count - 1}"):
        s.energy(signals)


def test_measures_of_the_zero_operator_are_zero():
    zero = dense_spectrum(torch.zeros(3, 3, dtype=torch.float64), 0.0, 1e-6, 3)
    assert zero.stable_rank() == zero.effective_rank() == 0


@pytest.mark.parametrize("steps", [2**53 + 1, 2**62 + 1, 10**30, 10**400, 10**400 + 1])
def test_predictions_after_any_number_of_steps_are_those_of_the_limit(steps):
    values = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0], dtype=torch.float64)  # factors -1, -1/2, 0, 1/2, 1
    vectors = torch.eye(5, dtype=torch.float64)
    s = dense_spectrum(vectors * values, 0.0, 1e-6, 5, eigenvectors=True)
    limit = torch.tensor([(-1.0) ** (steps % 2), 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    start = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(s.predict(0 * start, start, 1.0, steps), limit)

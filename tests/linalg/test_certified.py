"""Certified spectra: the interval of every rank contains the truth, and is narrow."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import matrix_with, operator_with, spectra

import inrfast as inr
from inrfast.errors import MemoryBudgetError, ResolutionError
from inrfast.linalg import certified
from inrfast.linalg.certified import certified_spectrum
from inrfast.linalg.demands import WIDTH, Pairs, Ranks
from inrfast.linalg.operators import DenseOperator
from inrfast.tangent.kernel_operator import KernelOperator

RTOLS = (1e-2, 1e-4, 1e-6, 1e-8)


@given(spectra(), st.sampled_from(RTOLS), st.integers(0, 10**6))
def test_the_interval_contains_the_rank(values, rtol, seed):
    n = len(values)
    operator = operator_with(values, seed)
    s = certified_spectrum(operator, Ranks((rtol,)), n, 1 << 30, seed)
    listed = len(s.eigenvalues)
    assert (values[:listed] >= s.eigenvalues - s.lower_error).all()
    assert (values[:listed] <= s.eigenvalues + s.upper_error).all()
    assert listed == n or (values[listed:] <= s.beyond).all()
    assert s.trace == pytest.approx(float(values.sum()), rel=1e-9)
    exact = torch.linalg.eigvalsh(operator.matrix).flip(0)
    for asked in (t for t in RTOLS if t >= max(rtol, s.floor)):
        interval = s.rank(asked)
        assert int((exact > asked * exact[0]).sum()) in interval
    if rtol >= 10 * n * 2.2e-16 and not ((values / values[0] / rtol - 1).abs() < 0.3).any():
        interval = s.rank(rtol)
        assert interval.upper - interval.lower <= WIDTH * interval.lower


@settings(max_examples=20)
@given(spectra(), st.integers(1, 40), st.sampled_from([1e-3, 1e-6, 1e-9]), st.integers(0, 10**6))
def test_pairs_are_as_accurate_as_asked(values, count, accuracy, seed):
    operator = operator_with(values, seed)
    s = certified_spectrum(operator, Pairs(min(count, len(values)), accuracy), len(values), 1 << 30, seed)
    listed = len(s.eigenvalues)
    assert listed == min(count, len(values)) or (values[listed:] <= s.upper_error).all()
    assert max(s.lower_error, s.upper_error) <= accuracy * s.eigenvalues[0]
    assert (values[:listed] >= s.eigenvalues - s.lower_error).all()
    assert (values[:listed] <= s.eigenvalues + s.upper_error).all()
    assert listed == len(values) or (values[listed:] <= s.beyond).all()


def decaying(n=900):
    return torch.arange(1, n + 1, dtype=torch.float64) ** -3.0


def test_it_stops_when_the_rank_is_known():
    values = decaying()
    operator = operator_with(values, 1)
    s = certified_spectrum(operator, Ranks((1e-5,)), 900, 1 << 30)
    rank = s.rank()
    assert int((values > 1e-5).sum()) in rank
    assert rank.upper - rank.lower <= WIDTH * rank.lower
    assert len(s.eigenvalues) < 900
    assert s.method == "cholesky"


def test_absolute_levels_are_demands_of_their_own():
    values = 5 * decaying()
    operator = operator_with(values, 2)
    s = certified_spectrum(operator, Ranks((), (4.1e-5,)), 900, 1 << 30)
    found = s.count_above(4.1e-5, 1e-5)
    assert int((values > 4.1e-5).sum()) in found
    assert found.upper - found.lower <= WIDTH * found.lower


def test_a_budget_that_ends_early_gives_a_lower_bound_and_no_rank():
    values = torch.logspace(0, -3, 900, dtype=torch.float64)
    operator = operator_with(values, 1)
    s = certified_spectrum(operator, Ranks((1e-3,)), 900, 8 * 900 * 364)
    assert len(s.eigenvalues) <= 300  # what is left beside columns of the operator, two blocks of 32
    with pytest.raises(ResolutionError, match=r"below the floor .*; at least \d+ eigenvalues are above it"):
        s.rank(1e-3)
    found = s.count_above(1e-3 * float(s.eigenvalues[0]), 1e-3)
    assert 100 < found.lower <= 900
    assert found.upper == 900


def test_what_cannot_be_reached_is_given_up_early(monkeypatch):
    monkeypatch.setattr(certified, "PATIENCE", 256)
    operator = operator_with(torch.ones(1500, dtype=torch.float64), 0)
    s = certified_spectrum(operator, Ranks((1e-3,)), 1500, 1 << 30)
    assert len(s.eigenvalues) < 1500
    assert s.count_above(1e-3, 1e-3).upper == 1500


def test_eigenvectors_are_orthonormal_and_their_residuals_within_the_error():
    values = decaying()
    operator = operator_with(values, 3)
    for demand in (Ranks((1e-5,)), Pairs(10, 1e-9), Pairs(10, 1e-5), Pairs(300, 1e-3)):
        s = certified_spectrum(operator, demand, 900, 1 << 30, eigenvectors=True)
        Q = s.eigenvectors
        assert Q.shape == (900, len(s.eigenvalues))
        if isinstance(demand, Pairs):
            assert len(s.eigenvalues) == demand.count
            assert max(s.lower_error, s.upper_error) <= demand.accuracy * s.eigenvalues[0]
        assert (Q.t() @ Q - torch.eye(Q.shape[1])).abs().max() <= 1e-10
        residuals = torch.linalg.vector_norm(operator.matrix @ Q - Q * s.eigenvalues, dim=0)
        assert residuals.max() <= max(s.lower_error, s.upper_error)
        assert (values[len(s.eigenvalues) :] <= s.beyond).all()


def test_the_same_seed_gives_the_same_numbers():
    operator = operator_with(decaying(), 1)
    first, second = (certified_spectrum(operator, Ranks((1e-5,)), 900, 1 << 30, seed=7) for _ in range(2))
    assert torch.equal(first.eigenvalues, second.eigenvalues)
    assert first.upper_error == second.upper_error


def test_zero_operators_and_small_budgets():
    zero = DenseOperator(torch.zeros(40, 40))
    s = certified_spectrum(zero, Ranks((1e-6,)), 40, 1 << 30, eigenvectors=True)
    assert str(s.rank(1e-6)) == "0"
    assert s.eigenvectors.shape == (40, 1)
    with pytest.raises(MemoryBudgetError, match=r"a block of 16 columns of order 900, .* needs"):
        certified_spectrum(operator_with(decaying(), 0), Ranks((1e-5,)), 900, 8 * 900 * 64)


def test_operators_that_are_none():
    negative = operator_with(torch.cat([torch.ones(60), torch.full((60,), -1e-5)]).double(), 0)
    with pytest.raises(ValueError, match="not positive semidefinite"):
        certified_spectrum(negative, Ranks((1e-3,)), 120, 1 << 30)
    matrix = matrix_with(torch.logspace(0, -3, 60), 0)
    matrix[:, :30] *= 1.01
    with pytest.raises(ValueError, match="not symmetric"):
        certified_spectrum(DenseOperator(matrix), Ranks((1e-3,)), 60, 1 << 30)


NETWORKS = {
    "torch default": {},
    "rank-expanding": {"init": "rank_expanding"},
    "SIREN, omega 30": {"activation": "sine", "init": "siren", "omega": 30.0},
    "SIREN, omega 6": {"activation": "sine", "init": "siren", "omega": 6.0},
    "Fourier features": {"encoding": inr.RandomFourier(32, 5.0)},
    "sphere norm": {"norm": "sphere"},
}

MATRICES = {
    "known": lambda n: torch.arange(1, n + 1, dtype=torch.float64) ** -2.5,
    "clustered": lambda n: torch.logspace(0, -9, 12, dtype=torch.float64)[torch.arange(n) * 12 // n],
    "deficient": lambda n: torch.where(torch.arange(n) < n // 4, torch.logspace(0, -4, n, dtype=torch.float64), 0),
    "flat": lambda n: torch.ones(n, dtype=torch.float64),
}


def cases():
    """200 of them: (operator, exact eigenvalues, rtol)."""
    for seed in range(5):
        for options in NETWORKS.values():
            net = inr.INR(2, 1, width=48, hidden_layers=3, seed=seed, **options)
            K = inr.ntk(net, inr.grid((20, 20)), precision="highest")
            exact = torch.linalg.eigvalsh(K.to_dense())
            yield from ((KernelOperator(K), exact, rtol) for rtol in RTOLS)
        for values in MATRICES.values():
            operator = operator_with(values(400), seed)
            exact = torch.linalg.eigvalsh(operator.matrix)
            yield from ((operator, exact, rtol) for rtol in RTOLS)


def test_intervals_contain_the_rank_and_are_narrow_in_200_cases():
    widths, unresolved, count = [], 0, 0
    for operator, exact, rtol in cases():
        n, truth = len(exact), int((exact > rtol * exact[-1]).sum())
        s = certified_spectrum(operator, Ranks((rtol,)), n, 1 << 30, seed=count)
        interval = s.count_above(rtol * float(s.eigenvalues[0]), rtol)
        assert truth in interval
        if s.floor > rtol:
            unresolved += 1
        elif rtol >= 10 * s.floor:
            widths.append((interval.upper - interval.lower) / truth)
        count += 1
    assert count == 200
    assert unresolved <= 0.05 * count
    assert len(widths) > 0.5 * count
    assert statistics.median(widths) <= 0.02
    assert statistics.quantiles(widths, n=20)[-1] <= 0.05

"""Bounds that hold, and eigenpairs that are the largest, whatever the spectrum."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import matrix_with, operator_with, spectra

from inrfast.errors import MemoryBudgetError, ResolutionError
from inrfast.linalg import lanczos, partition
from inrfast.linalg.lanczos import (
    KrylovBasis,
    christoffel_bound,
    largest_eigenpairs,
    least_weight,
    relative_gap,
    spectral_bounds,
)
from inrfast.linalg.operators import DenseOperator


@given(spectra(), spectra(), st.integers(1, 40), st.integers(0, 10**6))
def test_bounds_hold_the_spectrum_of_an_indefinite_operator(positive, negative, steps, seed):
    values = torch.cat([positive, -negative])
    matrix = matrix_with(values, seed)
    error = 1e-13 * float(values.abs().max())
    bounds = spectral_bounds(lambda v: matrix @ v, values, steps, 1e-6, seed, error)
    assert bounds.lower <= bounds.inner_lower
    assert bounds.inner_upper <= bounds.upper
    assert bounds.lower <= float(values.min())
    assert float(values.max()) <= bounds.upper
    assert float(values.min()) - 2 * error <= bounds.inner_lower
    assert bounds.inner_upper <= float(values.max()) + 2 * error
    if bounds.steps >= len(values):
        assert bounds.upper <= float(values.max()) + 4 * error


def test_the_failure_probability_is_what_it_says():
    """A spectrum with one large eigenvalue far from a crowd: the start rarely sees it. Failures within 3 sigma."""
    n, failure, tries = 200, 0.2, 400
    values = torch.full((n,), 0.7, dtype=torch.float64)
    values[: n // 2] = torch.linspace(0, 0.7, n // 2)
    values[-1] = 1.0
    failed = 0
    for seed in range(tries):
        bounds = spectral_bounds(lambda v: values.unsqueeze(1) * v, values, 3, failure, seed, batch=1)
        failed += bounds.upper < 1.0
    assert failed <= failure * tries + 3 * math.sqrt(tries * failure * (1 - failure))


def test_the_gap_is_near_the_textbook_one_and_vanishes_with_the_space():
    """1.648 sqrt(n) exp(-sqrt(e) (2 m - 1)) (Kuczynski and Wozniakowski): ours is at most it, and within 10 %."""
    for n, m in ((10**4, 20), (65536, 40), (10**6, 100)):
        e = relative_gap(n, m, 1e-6)
        textbook = (math.log(1.648 * math.sqrt(n) / 1e-6) / (2 * m - 1)) ** 2
        assert 0.85 * textbook <= e <= textbook or e < 0.85 * textbook < 0.4
    assert relative_gap(30, 30, 1e-6) == 0.0


@given(st.integers(1, 9), st.sampled_from([0.0, 1e-300, 1e-170, 1.0, 1e170, 1e300]), st.integers(0, 10**6))
def test_one_column_is_its_own_basis_whatever_its_size(rows, size, seed):
    """What stands in for a QR on a GPU: the same space, of one vector with norm 1, also where there is none."""
    column = size * torch.randn(rows, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found, exact = partition._unit(column), torch.linalg.qr(column).Q
    assert abs(float(found.norm()) - 1) <= 1e-15
    torch.testing.assert_close(found * (found * exact).sum().sign(), exact, rtol=0, atol=1e-14)


def test_stopping_early_is_allowed():
    values = torch.logspace(0, -6, 500, dtype=torch.float64)
    asked = []

    def enough(bounds):
        asked.append(bounds.steps)
        return bounds.upper <= 2.0

    bounds = spectral_bounds(lambda v: values.unsqueeze(1) * v, values, 100, 1e-6, 0, enough=enough)
    assert asked == list(range(4, bounds.steps + 1, 4))
    assert bounds.steps < 100
    assert 1.0 <= bounds.upper <= 2.0


@settings(max_examples=15)
@given(spectra(), st.integers(1, 4), st.integers(0, 10**6))
def test_the_basis_stays_orthonormal_through_breakdowns_and_restarts(values, width, seed):
    n = len(values)
    matrix = matrix_with(values, seed)
    width = min(width, n)
    error = 1e-13 * float(values.max())
    basis = KrylovBasis(torch.randn(n, width, dtype=torch.float64), min(n, 30), error)
    while not basis.full:
        basis.step(matrix @ basis.next)
    for _ in range(2):
        V = basis.vectors[:, : basis.size]
        assert (V.t() @ V - torch.eye(basis.size)).abs().max() <= 1e-12
        assert (basis.projection() - V.t() @ matrix @ V).abs().max() <= 1e-12 * float(values.max())
        theta, coefficients, residuals = basis.ritz()
        Y = V @ coefficients
        true = torch.linalg.vector_norm(matrix @ Y - Y * theta, dim=0)
        assert (true - residuals).abs().max() <= 1e-12 * float(values.max())
        if basis.size + width > n:
            break  # nothing is orthogonal to the whole space, so there is no next block
        basis.restart(coefficients[:, : basis.size // 2])
        basis.step(matrix @ basis.next)


@given(spectra(), st.integers(1, 20), st.integers(0, 10**6))
def test_the_largest_eigenpairs_of_small_operators(values, k, seed):
    k = min(k, len(values))
    check_pairs(operator_with(values, seed), values, k, 1e-6)


@given(st.integers(1, 20), st.integers(-8, 8), st.integers(0, 10**6))
def test_a_basis_that_nearly_fills_the_space_is_no_trouble(k, more, seed):
    """A slow decay takes every vector of the basis, and a block more would find no direction left."""
    n = 3 * min(k + 8, 60) + 32 + more
    values = 1 / (1 + torch.arange(n, dtype=torch.float64))
    operator = DenseOperator(matrix_with(values, seed))
    found = largest_eigenpairs(operator, k, n, 1e-10, 2**30, seed)
    assert ((found.eigenvalues - values[:k]).abs() <= found.upper_error + 1e-14).all()


@pytest.mark.parametrize("kind", ["decay", "clusters", "deficient"])
def test_the_largest_eigenpairs_by_restarts(kind):
    n, k = 1500, 20
    index = torch.arange(n, dtype=torch.float64)
    values = {
        "decay": (index + 1) ** -2.0,
        "clusters": torch.tensor([1.0, 1e-1, 1e-2, 1e-3], dtype=torch.float64)[index.long() // 12 % 4 * (index < 48)]
        * torch.where(index < 48, 1.0, 1e-5),
        "deficient": torch.where(index < 25, 0.7**index, 0.0),
    }[kind]
    values = values.sort(descending=True).values
    spectrum = check_pairs(operator_with(values, 5), values, k, 1e-8)
    assert spectrum.upper_error <= 1e-6
    assert int((values > 0.5).sum()) in spectrum.rank(0.5)


def check_pairs(operator, values, k, rtol):
    spectrum = largest_eigenpairs(operator, k, len(values), rtol, 1 << 30, eigenvectors=True)
    assert len(spectrum.eigenvalues) == k
    assert (values[:k] >= spectrum.eigenvalues - spectrum.lower_error).all()
    assert (values[:k] <= spectrum.eigenvalues + spectrum.upper_error).all()
    assert (values[k:] <= spectrum.beyond + spectrum.lower_error).all()
    Q = spectrum.eigenvectors
    assert (Q.t() @ Q - torch.eye(k)).abs().max() <= 1e-10
    residuals = torch.linalg.vector_norm(operator.matrix @ Q - Q * spectrum.eigenvalues, dim=0)
    assert residuals.max() <= rtol * float(values[0]) + 2 * operator.matrix_error
    return spectrum


def test_what_cannot_be_done_is_said(monkeypatch):
    operator = operator_with(torch.linspace(1, 0.9, 600, dtype=torch.float64), 0)
    with pytest.raises(MemoryBudgetError, match="Krylov basis of"):
        largest_eigenpairs(operator, 10, 600, 1e-6, 1000)
    monkeypatch.setattr(lanczos, "RESTARTS", 1)
    with pytest.raises(ResolutionError, match="of 18 eigenpairs converged"):
        largest_eigenpairs(operator, 10, 600, 1e-12, 1 << 30)
    matrix = matrix_with(torch.logspace(0, -3, 600), 0)
    matrix[:, :30] *= 1.01
    for k in (3, 500):
        with pytest.raises(ValueError, match="not symmetric"):
            largest_eigenpairs(DenseOperator(matrix), k, 600, 1e-2, 1 << 30)
    negative = operator_with(torch.cat([torch.ones(300), torch.full((300,), -0.5)]).double(), 0)
    for k in (3, 500):
        with pytest.raises(ValueError, match="not positive semidefinite"):
            largest_eigenpairs(negative, k, 600, 1e-2, 1 << 30)


@given(
    spectra(),
    st.floats(0, 3),
    st.integers(1, 30),
    st.sampled_from([1e-8, 1e-3]),
    st.sampled_from([1e-300, 1.0, 1e200]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_an_eigenvalue_that_the_start_hardly_sees_is_not_excluded(
    values, above, steps, failure, unit, proportional, seed
):
    """The largest eigenvalue, of exactly the least weight in the start, is below Christoffel's bound in any unit."""
    n = len(values)
    values = values.clone()
    values[0] = float(values[0]) * (1 + 10.0 ** (above - 2))
    weight = least_weight(n, failure)
    start = torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start[0] = 0
    start *= math.sqrt(1 - weight) / start.norm()
    start[0] = math.sqrt(weight)
    basis = KrylovBasis(start, min(steps, n), 1e-13 * float(values[0]))
    while not basis.full:
        basis.step(values.unsqueeze(1) * basis.next)
    _, diagonal, below = basis.tridiagonal()
    given = weight / float(values[0]) / unit if proportional else weight
    found = christoffel_bound([unit * a for a in diagonal], [unit * b for b in below], given, proportional)
    assert found >= unit * float(values[0]) * (1 - 1e-12 * n)
    assert found >= unit * float(torch.linalg.eigvalsh(basis.projection())[-1]) * (1 - 1e-12)

"""The choice of a method, and what each is called with."""

import math
import re

import pytest
import torch
from known_spectra import matrix_with, operator_with

from inrfast.errors import MemoryBudgetError, NotAvailableError, RangeError, ResolutionError
from inrfast.linalg import certified, counting, eigenvalues
from inrfast.linalg.demands import WIDTH
from inrfast.linalg.eigenvalues import METHODS, counts, spectrum
from inrfast.linalg.operators import RANGE, DenseOperator


def of(operator, rtol=1e-6, k=None, method="auto", eigenvectors=False, budget=1 << 30, seed=0):
    return spectrum(operator, rtol, k, method, eigenvectors, operator.shape[0], budget, seed, False)


def decaying(n=600):
    return torch.arange(1, n + 1, dtype=torch.float64) ** -3.0


def test_small_orders_are_dense_and_large_ones_are_not(monkeypatch):
    operator = operator_with(decaying(), 0)
    s = of(operator)
    assert s.method == "dense"
    assert "600 is at most 4096" in s.note
    s = of(operator, 1e-5, budget=2 * 8 * 600**2)  # beyond the budget as a matrix
    assert s.method == "cholesky"
    assert re.search(r"of order 600 take [\d.]+ MiB, beyond the budget of [\d.]+ MiB: pivoted", s.note)
    monkeypatch.setattr(eigenvalues, "SMALL", 500)
    s = of(operator, 1e-4)
    assert s.method == "cholesky"
    assert "600 is above 500: pivoted Cholesky" in s.note
    assert s.counts is None
    assert int((decaying() > 1e-4).sum()) in s.rank()


def test_where_the_factor_is_too_short_a_quadrature_stands_beside_it(monkeypatch):
    monkeypatch.setattr(eigenvalues, "SMALL", 500)
    monkeypatch.setattr(certified, "PATIENCE", 256)
    values = torch.logspace(0, -1, 900, dtype=torch.float64)
    s = of(operator_with(values, 0), 1e-3, budget=1 << 23)  # too little for a factorisation, or all eigenvalues
    assert "a stochastic quadrature estimates counts" in s.note
    assert re.search(r"factorisations of K - level I would prove them with [\d.]+ MiB beside the operator", s.note)
    with pytest.raises(ResolutionError, match="below the floor"):
        s.rank()
    found = s.estimated_rank(0.15)
    assert int((values > 0.15).sum()) in found


@pytest.mark.parametrize("method", ["dense", "cholesky", "lanczos"])
def test_the_methods_agree(method):
    values = decaying()
    s = of(operator_with(values, 0), 1e-6, k=12, method=method, eigenvectors=True)
    assert s.method == method
    assert s.note == ""
    assert s.eigenvalues.shape == (12,)
    assert s.eigenvectors.shape == (600, 12)
    assert (values[:12] >= s.eigenvalues - s.lower_error).all()
    assert (values[:12] <= s.eigenvalues + s.upper_error).all()
    assert s.upper_error <= 1e-5


def test_levels_are_counted_in_place_of_the_rank(monkeypatch):
    monkeypatch.setattr(eigenvalues, "SMALL", 500)
    values = 3 * decaying()
    n = len(values)
    s = spectrum(operator_with(values, 0), 1e-9, None, "auto", False, n, 1 << 30, 0, False, levels=(3.1e-4,))
    found = s.count_above(3.1e-4, 1e-4)
    assert int((values > 3.1e-4).sum()) in found
    assert found.upper - found.lower <= WIDTH * found.lower
    assert len(s.eigenvalues) < n  # a rank at 1e-9 would take them all
    with pytest.raises(ValueError, match="levels"):
        spectrum(operator_with(values, 0), 1e-9, None, "auto", False, n, 1 << 30, 0, False, levels=(-1.0,))


def test_the_quadrature_certifies_the_largest_eigenvalue_alone():
    values = decaying()
    s = of(operator_with(values, 0), method="quadrature")
    assert s.eigenvalues - s.lower_error <= 1 <= s.eigenvalues + s.upper_error
    with pytest.raises(ResolutionError, match="compute more of them, or estimated_rank"):
        s.rank(0.5)
    with pytest.raises(ResolutionError, match="no estimates"):
        of(operator_with(values, 0), method="dense").estimated_rank(0.1)


@pytest.mark.parametrize("method", METHODS)
def test_errors_that_are_no_numbers_leave_every_count_open_or_are_refused(method):
    values = torch.logspace(0, -6, 100, dtype=torch.float64)
    for n in (100, 40):
        for name in ("matrix_error", "jacobian_error"):
            for bad in (math.nan, math.inf):
                operator = DenseOperator(matrix_with(values[:n], 0))
                setattr(operator, name, bad)
                try:
                    s = of(operator, 1e-3, method=method)
                except ValueError:
                    continue
                assert (s.count_above(0.05).lower, s.count_above(0.05).upper) == (0, n)
                with pytest.raises(ResolutionError):
                    s.rank(0.05)
    for bad in (math.nan, math.inf, -1e-9, "1"):
        with pytest.raises((ValueError, TypeError), match="matrix_error must be"):
            DenseOperator(torch.eye(3), bad)


@pytest.mark.parametrize("method", ["dense", "cholesky", "inertia"])
def test_counts_in_any_unit_hold_the_truth_or_are_refused_by_the_range(method, monkeypatch):
    monkeypatch.setattr(eigenvalues, "SMALL", 50)
    monkeypatch.setattr(counting, "SMALL", 80)  # so that fp32 is tried where it holds the entries
    values = torch.logspace(0, -9, 90, dtype=torch.float64)
    for power in (-1000, -500, -420, -400, 0, 400, 420, 500, 850, 1000):
        scale = 2.0**power
        operator = DenseOperator(matrix_with(values, 0) * scale)
        levels = [scale * t for t in (0.3, 1.3e-2, 1e-4, 1e-7)]
        arguments = (operator, 1e-3, None, method, False, 90, 1 << 30, 0, False, levels)
        if method == "inertia" and not RANGE[0] < scale < RANGE[1] / 90:
            with pytest.raises(RangeError, match=r"norm from 1e-130 to 1e\+130.*use method='dense'"):
                spectrum(*arguments)
            s = counts(operator, 1e-3, 90, 1 << 30, levels=levels)  # which are left to LAPACK
            assert s.method == "dense"
        else:
            s = spectrum(*arguments)
        for level in levels:
            found = s.count_above(level)
            assert int((values > level / scale).sum()) in found
            assert found.upper - found.lower <= (0 if -450 < power < 450 and method != "cholesky" else 90)


def test_bad_requests(monkeypatch):
    operator = operator_with(decaying(50), 0)
    for rtol in (0.0, -1e-3, 1.0, 1e-15, float("nan")):
        with pytest.raises(ValueError, match="rtol"):
            of(operator, rtol)
    with pytest.raises(ValueError, match="k must be at most the order 50"):
        of(operator, k=51)
    with pytest.raises(ValueError, match="k must be at least 1"):
        of(operator, k=0)
    with pytest.raises(ValueError, match="Did you mean 'cholesky'"):
        of(operator, method="cholesky_")
    with pytest.raises(MemoryBudgetError, match="a dense spectrum needs"):
        of(operator, method="dense", budget=100)
    monkeypatch.setattr(eigenvalues, "DENSE_LIMIT", 40)
    with pytest.raises(NotAvailableError, match="dense limit 40; use method='cholesky'"):
        of(operator, method="dense")

"""Spectra with certified counts: they hold the truth at every level, of every kernel, and the way is chosen by cost."""

import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import operator_with, spectra

import inrfast as inr
from inrfast.errors import MemoryBudgetError, ResolutionError
from inrfast.linalg import certified, costs, counted, counting, eigenvalues
from inrfast.linalg.block_ldl import block_ldl
from inrfast.linalg.counted import counted_spectrum, counts_bytes
from inrfast.linalg.demands import WIDTH, Ranks
from inrfast.linalg.eigenvalues import spectrum
from inrfast.linalg.operators import DenseOperator

KINDS = {
    "gaussian": {"activation": "gaussian"},
    "sine 60": {"activation": "sine", "omega": 60.0},
    "fourier features": {"encoding": inr.RandomFourier(32, 4.0)},
    "SIREN": {"activation": "sine", "init": "siren"},
    "relu": {},
}


def reflected(values):
    """A dense operator with these eigenvalues whose eigenvectors are those of a reflection."""
    n = len(values)
    v = torch.nn.functional.normalize(
        torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64), dim=0
    )
    half = torch.diag(values) - 2 * torch.outer(v, v * values)
    matrix = half - 2 * torch.outer(half @ v, v)
    return DenseOperator((matrix + matrix.t()) / 2, 32 * n * 2.2e-16 * float(values[0]))


def truth(values, level, error):
    """The numbers of eigenvalues above a level that an error of the eigenvalues leaves possible."""
    return range(int((values > level + error).sum()), int((values > level - error).sum()) + 1)


def fits(found, possible):
    """Whether an interval holds one of the numbers that are possible."""
    return found.lower <= possible[-1] and possible[0] <= found.upper


@settings(max_examples=12)
@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(["trace", "full", "layer", "trained"]),
    st.integers(70, 130),
    st.lists(st.floats(-8, -0.1), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_counts_of_kernels_hold_the_truth_at_every_level(kind, of, points, exponents, absolute, seed):
    net = inr.INR(2, 2 if of == "full" else 1, width=24, hidden_layers=2, seed=seed % 1000, **KINDS[kind])
    coords = 2 * torch.rand(points, 2, generator=torch.Generator().manual_seed(seed)) - 1
    if of == "trained":
        inr.fit(net, coords, torch.sin(5 * coords[:, :1]), steps=20, progress=False)
    kernel = inr.ntk(net, coords, output="full" if of == "full" else "trace")
    kernel = kernel.layers["layers.1"] if of == "layer" else kernel
    values = torch.linalg.eigvalsh(kernel.at_precision("highest").to_dense()).flip(0)
    one = float(values[0])
    error = 1e-13 * one
    rtols = [10.0**e for e in exponents]
    levels = [rtol * one for rtol in rtols] if absolute else ()
    s = kernel.spectrum(rtols, method="inertia", levels=levels, progress=False)
    assert s.method == "inertia"
    assert s.eigenvalues.shape == (1,)
    low, high = s.largest
    assert low - error <= one <= high + error
    assert high - low <= 1e-6 * one
    assert s.stable_rank() == pytest.approx(float(values.sum()) / one, rel=1e-6)
    assert all(count.failure <= 1e-6 for count in s.certified)
    again = pickle.loads(pickle.dumps(s))
    for rtol in (*rtols, 0.5, 1e-3, 1e-10):
        possible = truth(values, rtol * one, error)
        assert fits(again.count_above(rtol * one), possible)
        assert fits(again.count_above(rtol * float(s.eigenvalues[0]), rtol), possible)
    for rtol in rtols:
        found = s.rank(rtol)
        gap = float((values / (rtol * one) - 1).abs().min())
        if rtol > 1e-7 and gap > 1e-4:  # nothing near the level: one number
            assert found.lower == found.upper
    with pytest.raises(ValueError, match="counts alone"):
        s.energy(torch.ones(s.size))


@given(spectra(), st.lists(st.floats(-9, 1), min_size=1, max_size=3), st.integers(0, 100))
def test_counts_of_matrices_hold_the_truth(values, exponents, seed):
    operator = operator_with(values, seed)
    exact, n = torch.linalg.eigvalsh(operator.matrix).flip(0), len(values)
    levels = tuple(10.0**e * float(values[0]) for e in exponents)
    s = counted_spectrum(operator, Ranks((), levels), n, 1 << 30, seed)
    for level in levels:
        assert fits(s.count_above(level), truth(exact, level, 4 * n * 2.2e-16 * float(values[0])))
    assert len(s.certified) <= len(set(levels))  # none for levels above lambda_1


def test_levels_below_the_residual_are_told_and_take_no_factorisation_of_their_own(monkeypatch):
    made, n = [], 200
    monkeypatch.setattr(counting, "block_ldl", lambda *a, **k: made.append(a[1]) or block_ldl(*a, **k))
    values = torch.logspace(0, -20, n, dtype=torch.float64)
    operator = operator_with(values, 0)
    operator.jacobian_error = 1e-100  # of a kernel, whose eigenvalues are not negative
    residual = operator.matrix_error
    low, high = (residual / 8, residual / 64, residual / 512), 1.1e-3
    s = spectrum(operator, 1e-3, None, "inertia", False, n, 1 << 30, 0, False, (low[2], high, low[1], low[0], high))
    exact = torch.linalg.eigvalsh(operator.matrix).flip(0)
    known = int((exact > high).sum())
    assert (s.count_above(high).lower, s.count_above(high).upper) == (known, known)
    assert sum(shift < high / 2 for shift in made) == 1
    highs = [count.high for count in s.certified]
    assert highs == sorted(highs, reverse=True)  # by falling level, each once
    assert len(highs) == 4
    for count, level in zip(s.certified[1:], low, strict=True):
        assert count.covers(level, level)
        assert known <= count.lower < count.upper <= n
        assert count.failure <= 1e-6 * (1 + 1e-12)
        assert re.search(rf"not one number is the count at .*level {level:g} \(in \[", s.note)
    assert re.search(
        r"fp64 miss .* of K - level I, more than the level; take a higher level, or method='dense'", s.note
    )
    assert f"level {high:g}" not in s.note
    assert spectrum(operator, high, None, "inertia", False, n, 1 << 30, 0, False).note == ""
    operator.jacobian_error = 1e-6
    hidden = spectrum(operator, 1e-3, None, "inertia", False, n, 1 << 30, 0, False, (1e-13,))
    assert re.search(r"level 1e-13 \(in .*rounding of the network's own factors moves .* 1.0e-12 from 0", hidden.note)


def choosing(monkeypatch):
    """Let the pivots of small orders give way as those of large ones do, and to factorisations alone."""
    monkeypatch.setattr(eigenvalues, "SMALL", 100)
    monkeypatch.setattr(eigenvalues, "DENSE_LIMIT", 0)
    monkeypatch.setattr(costs, "CERTIFICATE", 0)


@pytest.mark.parametrize("power", [0.2, 0.7, 1.5, 3.0, 8.0])
def test_pivots_give_way_exactly_where_they_do_not_answer_at_less_cost(monkeypatch, power):
    choosing(monkeypatch)
    n, rtols = 480, (0.11, 1.3e-3)
    values = torch.arange(1, n + 1, dtype=torch.float64) ** -power
    operator = reflected(values)
    both = [spectrum(operator, rtols, None, "auto", False, n, 1 << 30, 3, False) for _ in range(2)]
    s = both[0]
    assert s.note == both[1].note
    assert torch.equal(s.eigenvalues, both[1].eigenvalues)
    assert s.certified == both[1].certified
    assert s.method == ("cholesky" if power >= 3 else "inertia")
    assert bool(re.search("of K - level I certif", s.note)) == (s.method == "inertia")
    listed = len(s.eigenvalues)
    assert (values[:listed] >= s.eigenvalues - s.lower_error - 1e-12).all()
    assert (values[:listed] <= s.eigenvalues + s.upper_error + 1e-12).all()
    for rtol in rtols:
        found = s.rank(rtol)
        assert fits(found, truth(values, rtol, 1e-12))
        assert found.upper - found.lower <= counted.TOLERATED * WIDTH * found.lower + 1


def test_levels_that_pivots_resolve_are_not_factored(monkeypatch):
    choosing(monkeypatch)
    n = 480
    values = torch.cat(
        [torch.logspace(0, -2, 12), torch.full((n - 12,), 1e-5) * torch.linspace(1, 0.2, n - 12)]
    ).double()
    s = spectrum(reflected(values), (0.1, 5e-6), None, "auto", False, n, 1 << 30, 0, False)
    assert s.method == "inertia"
    assert len(s.certified) == 1
    assert "a factorisation of K - level I certifies the count" in s.note
    assert s.rank(0.1).lower == s.rank(0.1).upper == int((values > 0.1).sum())
    assert fits(s.rank(5e-6), truth(values, 5e-6, 1e-12))
    with pytest.raises(ResolutionError, match=r"counts certified at the levels 5e-06 .* lies in \["):
        s.rank(2e-6)


def test_budgets_for_single_and_for_double_precision(monkeypatch):
    for module in (counting, counted):
        monkeypatch.setattr(module, "SMALL", 200)
    n = 500
    values = torch.logspace(0, -8, n, dtype=torch.float64)
    operator = reflected(values)
    single, double = (counts_bytes(operator, rtol) for rtol in (1.0, 1e-9))
    assert single < double

    def of(budget, rtol, levels=(), method="inertia"):
        return spectrum(operator, rtol, None, method, False, n, budget, 0, False, levels)

    s = of(single, 0.03)
    assert s.certified[0].precision == "high"
    assert fits(s.rank(0.03), truth(values, 0.03, 1e-12))
    assert of(double, 1e-7).certified[0].precision == "highest"
    message = f"certified count of order {n}( in fp64)? needs .*; raise memory_budget, take fewer points"
    for budget, rtol, levels in ((single - 1, 0.03, ()), (double - 1, 1e-7, ()), (single, 0.1, (1e-7,))):
        with pytest.raises(MemoryBudgetError, match=message) as caught:
            of(budget, rtol, levels)
        assert caught.value.needed in (single, double)
    monkeypatch.setattr(eigenvalues, "SMALL", 100)  # nor do pivots resolve this level
    monkeypatch.setattr(eigenvalues, "DENSE_LIMIT", 0)
    monkeypatch.setattr(certified, "_room", lambda *given: (30, 120))
    for budget, levels in ((single - 1, ()), (single, (1e-7,))):
        told = of(budget, 1e-7, levels, "auto")
        assert told.method == "cholesky"
        assert "a stochastic quadrature estimates counts" in told.note
        assert re.search(
            r"factorisations of K - level I would prove them with [\d.]+ MiB beside the operator", told.note
        )
    assert of(double, 0.1, (1e-7,), "auto").method == "inertia"


def test_what_only_lists_is_refused_by_name():
    operator = operator_with(torch.linspace(1, 2, 80, dtype=torch.float64), 0)
    for k, vectors, message in ((3, False, "k must be None, got 3"), (None, True, "eigenvectors must be False")):
        with pytest.raises(ValueError, match=f"{message}.*method='inertia' counts"):
            spectrum(operator, 1e-3, k, "inertia", vectors, 80, 1 << 30, 0, False)
    for rtol in ([], [0.1, 2.0], [0.1, 0.0], [[0.1]], "0.1", torch.ones(2, 2)):
        with pytest.raises((ValueError, TypeError), match="rtol"):
            spectrum(operator, rtol, None, "inertia", False, 80, 1 << 30, 0, False)
    for levels in ([-1.0], [float("nan")], [0.0], ["a"]):
        with pytest.raises((ValueError, TypeError), match="levels"):
            spectrum(operator, 0.1, None, "inertia", False, 80, 1 << 30, 0, False, levels)
    negative = DenseOperator(torch.diag(torch.tensor([1.0, -1.0])))
    with pytest.raises(ValueError, match="diagonal entry 1 is -1"):
        spectrum(negative, 0.1, None, "inertia", False, 2, 1 << 30, 0, False)
    zero = spectrum(DenseOperator(torch.zeros(70, 70)), 0.1, None, "inertia", False, 70, 1 << 30, 0, False)
    assert str(zero.rank(0.1)) == "0"
    assert zero.stable_rank() == zero.effective_rank() == 0

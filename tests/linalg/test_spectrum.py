"""Ranks as intervals: they contain the truth for matrices whose spectrum is known by construction."""

import functools
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.errors import ResolutionError
from inrfast.linalg.certificates import CertifiedCount
from inrfast.linalg.operators import DenseOperator
from inrfast.linalg.quadrature import quadrature_counts
from inrfast.linalg.spectrum import RankInterval, Spectrum, dense_spectrum


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
    for rtol, message in ((0.0, "above"), (1.0, "below 1"), (2, "below 1"), (math.nan, "finite")):
        with pytest.raises(ValueError, match=f"rtol must be {message}"):
            full.rank(rtol)
    for threshold in (math.nan, math.inf, "1", None, 1j, 10**400, True):
        with pytest.raises((ValueError, TypeError), match="threshold must be"):
            full.count_above(threshold)


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
    whole = dense_spectrum(moved @ moved.t(), 4e-16 * n, 1e-13, n)
    once, twice = (
        functools.reduce(lambda found, error: found.with_jacobian_error(error), errors, whole)
        for errors in ((1.5 * error,), (error, 0.25 * error, 0.0, 0.25 * error))
    )
    assert math.isclose(once.jacobian_error, twice.jacobian_error, rel_tol=1e-12)
    for one, other in ((once.upper_error, twice.upper_error), *zip(once.bounds(), twice.bounds(), strict=True)):
        assert torch.allclose(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-9, atol=1e-15)


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


def certified_at(values, low, high, slack):
    """A true count between two levels, as wide as ``slack`` makes it."""
    lower, upper = int((values > high).sum()), int((values > low).sum())
    return CertifiedCount(low, high, max(lower - slack, 0), min(upper + slack, len(values)), "high", 0.0, 1e-6)


@st.composite
def counted_spectra(draw):
    """Eigenvalues, and a spectrum that lists some of them to an error and knows counts at some levels."""
    n = draw(st.integers(2, 80))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    values = (10.0 ** -(6 * torch.rand(n, generator=generator, dtype=torch.float64))).sort(descending=True).values
    listed, error = draw(st.integers(1, n)), 10.0 ** draw(st.floats(-9, -2))
    width = 10.0 ** draw(st.floats(-9, -1))
    levels = [10.0**e for e in draw(st.lists(st.floats(-6, 0), max_size=4))]
    certified = tuple(certified_at(values, t * (1 - width), t * (1 + width), draw(st.integers(0, 2))) for t in levels)
    moved = error * (2 * torch.rand(listed, generator=generator, dtype=torch.float64) - 1)
    moved[0] = 0
    known = (values[:listed] + moved).sort(descending=True).values
    beyond = float(values[listed - 1]) if listed < n else math.inf
    one = float(values[0])
    largest = draw(st.sampled_from([None, (one * (1 - 1e-10), one * (1 + 1e-10))]))
    total = float(values.sum())
    s = Spectrum(known, None, error, error, n, total, n, 1e-5, "cholesky", beyond, certified=certified, largest=largest)
    return values, s


@given(counted_spectra(), st.lists(st.floats(-7, 0), min_size=1, max_size=8), st.floats(-12, -1))
def test_certified_counts_and_listed_eigenvalues_bracket_the_truth_at_every_level(case, exponents, error):
    values, s = case
    assert pickle.loads(pickle.dumps(s)).certified == s.certified
    lower, upper = s.bounds()
    assert (lower <= values[: len(lower)]).all()
    assert (values[: len(upper)] <= upper).all()
    for count in s.certified:  # at the levels themselves nothing is lost
        assert count.lower <= s.count_above(count.high).lower
        assert s.count_above(count.low).upper <= count.upper
    sigma, error = values.sqrt(), 10.0**error
    generator = torch.Generator().manual_seed(0)
    exact = (sigma + error * (2 * torch.rand(len(sigma), generator=generator, dtype=torch.float64) - 1)).clamp_min(0)
    exact = exact.square().sort(descending=True).values
    for truth, found in ((values, s), (exact, s.with_jacobian_error(1.0000001 * error)), (values, s.truncated(3))):
        last = None
        for exponent in sorted(exponents, reverse=True):
            level = 10.0**exponent
            assert int((truth > level).sum()) in found.count_above(level)
            rtol = level / float(found.eigenvalues[0])
            assert int((truth > rtol * float(truth[0])).sum()) in found.count_above(level, rtol)
            assert last is None or found.count_above(level).upper >= last.upper
            last = found.count_above(level)
            if rtol >= 1:
                continue
            try:
                rank = found.rank(rtol)
            except ResolutionError:
                continue
            assert int((truth > rtol * float(truth[0])).sum()) in rank


@given(
    counted_spectra(),
    st.sampled_from(["lower_error", "upper_error", "beyond", "jacobian_error", "largest", "certified"]),
    st.sampled_from([math.nan, math.inf]),
    st.floats(-7, 0),
)
def test_what_is_no_number_proves_nothing(case, name, bad, exponent):
    values, s = case
    level = 10.0**exponent
    if name == "certified":
        spoiled = replace(
            s, certified=tuple(replace(c, low=math.nan, high=math.nan, lower=99, upper=0) for c in s.certified)
        )
    elif name == "largest":
        spoiled = replace(s, largest=(math.nan, bad))
    elif name == "jacobian_error":
        spoiled = s.with_jacobian_error(bad)
    else:
        spoiled = replace(s, **{name: bad}, certified=(), largest=None)
    found = spoiled.count_above(level)
    assert int((values > level).sum()) in found
    lower, upper = spoiled.bounds()
    assert not (lower > values[: len(lower)]).any()
    assert not (upper < values[: len(upper)]).any()
    if name in ("lower_error", "jacobian_error"):
        assert found.lower == 0
    if name in ("upper_error", "jacobian_error"):
        assert found.upper >= len(s.eigenvalues)
    if name in ("beyond", "jacobian_error") and len(s.eigenvalues) < s.size:
        assert found.upper == s.size


def test_a_certified_level_is_answered_below_the_floor_and_no_other():
    values = torch.logspace(0, -6, 61, dtype=torch.float64)
    one = Spectrum(values[:1], None, 1e-3, 1e-3, 61, float(values.sum()), 61, 1e-4, "inertia", largest=(1.0, 1.0))
    counts = tuple(certified_at(values, t * (1 - 1e-9), t * (1 + 1e-9), 0) for t in (2e-4, 2e-5))
    s = replace(one, certified=counts)
    assert (s.rank(2e-4).lower, s.rank(2e-4).upper) == (37, 37)
    assert s.rank(2e-5) == RankInterval(47, 47, 2e-5)
    with pytest.raises(
        ResolutionError, match=r"levels 0.0002, 2e-05 \(lambda_1 is 1\) it lies in \[37, 47\].*levels=\[5e-05"
    ):
        s.rank(5e-5)
    with pytest.raises(ResolutionError, match=r"\[1, 37\]"):
        s.rank(1e-2)
    with pytest.raises(ResolutionError, match=r"\[47, 61\]"):
        s.rank(1e-6)
    with pytest.raises(ResolutionError, match="needs all 61"):
        s.effective_rank()
    assert s.stable_rank() == pytest.approx(float(values.sum()))
    with pytest.raises(ValueError, match='another method, as "inertia" counts alone'):
        s.energy(torch.ones(61))
    between = replace(s, certified=(*counts, certified_at(values, 2.1e-5, 2.1e-5, 0)))
    assert between.rank(2.05e-5).lower == between.rank(2.05e-5).upper == 47  # equal on either side


def test_zeros_exceed_a_negative_threshold():
    s = replace(dense_spectrum(torch.diag(torch.tensor([1.0, 0.5, 0.0, 0.0]).double()), 0.0, 1e-6, 2), rank_bound=2)
    assert 4 in s.count_above(-1.0) and 4 in s.truncated(2).count_above(-1e-9) and 2 in s.count_above(0.0)


def test_a_spectrum_for_levels_names_no_tolerance_of_its_own():
    s = Spectrum(torch.tensor([1.0]).double(), None, 0.0, 0.0, 9, 2.0, 9, 2.0**-53, "inertia", beyond=1.0)
    with pytest.raises(ResolutionError, match="computed for absolute levels"):
        s.rank()
    s = replace(s, certified=(CertifiedCount(0.1, 0.1, 3, 3, "high", 0.0, 1e-6),))
    for rtol, told in ((1e-15, r"ask for levels=\["), (1e-5, r"ask for spectrum\(rtol=1e-05\), or for levels=\[")):
        with pytest.raises(ResolutionError, match=told):
            s.rank(rtol)


def plotted(spectrum, **options):
    (axes,) = spectrum.plot(**options).axes
    return axes


def test_the_figure_shows_eigenvalues_over_their_index_and_the_rank_at_every_tolerance(tmp_path):
    spectrum = dense_spectrum(torch.diag(10.0 ** -torch.arange(6, dtype=torch.float64)), 1e-8, 1e-6, 6)
    axes = plotted(spectrum, rtols=[0.5, 2e-3], path=tmp_path / "figure.svg")
    line = axes.get_lines()[0]
    np.testing.assert_array_equal(line.get_xdata(), range(1, 7))
    np.testing.assert_allclose(line.get_ydata(), spectrum.eigenvalues / spectrum.eigenvalues[0])
    told = [text.get_text() for text in axes.texts]
    assert told == ["tolerance 0.5: rank 1", "tolerance 0.002: rank 3"]
    assert (tmp_path / "figure.svg").stat().st_size > 1000
    assert "rank" in plotted(spectrum).texts[0].get_text()  # at the tolerance computed for


def test_the_figure_shows_bounds_where_they_can_be_seen_and_certified_counts():
    values = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    exact = Spectrum(values, None, 0.0, 0.0, 9, 2.0, 9, 1e-3, "lanczos", 0.1)
    assert not plotted(exact).collections
    wide = replace(exact, lower_error=0.2, upper_error=0.2)
    assert plotted(wide).collections
    count = CertifiedCount(0.01, 0.01, 4, 6, "highest", 0.0, 0.0)
    bar = plotted(replace(exact, certified=(count,))).get_lines()[1]
    assert list(bar.get_xdata()) == [4, 6] and bar.get_ydata()[0] == pytest.approx(0.01)
    assert "between 3 and 9" in plotted(exact, rtols=[1e-2]).texts[0].get_text()  # others may be anything up to 0.1


def test_the_figure_of_estimated_counts_says_so():
    matrix = torch.diag(torch.linspace(1, 0.5, 200, dtype=torch.float64))
    counts = quadrature_counts(DenseOperator(matrix), probes=20, steps=60)
    spectrum = Spectrum(matrix.diagonal()[:1], None, 0.0, 0.0, 200, 150.0, 200, 1e-3, "quadrature", counts=counts)
    axes = plotted(spectrum, rtols=[0.1])
    assert "estimated" in axes.texts[0].get_text()
    assert [own.get_label() for own in axes.collections] == ["estimated counts, three standard errors"]


def test_the_figure_refuses_what_cannot_be_drawn(tmp_path):
    zero = dense_spectrum(torch.zeros(2, 2, dtype=torch.float64), 0.0, 1e-6, 2)
    with pytest.raises(ValueError, match="cannot be drawn: the operator is zero"):
        zero.plot()
    one = dense_spectrum(torch.eye(2, dtype=torch.float64), 0.0, 1e-6, 2)
    for rtols, error in ((2.0, TypeError), ("1e-3", TypeError), ([1.0], ValueError), ([-1e-3], ValueError)):
        with pytest.raises(error, match="rtols"):
            one.plot(rtols=rtols)
    with pytest.raises(ValueError, match="path must end in one of"):
        one.plot(tmp_path / "figure.gif")

"""Factorisations of ``K - shift I``: inertia, distance, solutions and log-determinants, or an error, at every shift."""

import contextlib
import copy
import math
import pickle
import threading
import warnings

import mpmath
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import operator_with, spectra
from random_networks import networks, random_coords

import inrfast as inr
from inrfast.errors import MemoryBudgetError, RangeError, ResolutionError
from inrfast.linalg.block_ldl import block_ldl
from inrfast.linalg.factorization import Factorization, factorize
from inrfast.linalg.operators import DenseOperator
from inrfast.memory import format_bytes

PRECISIONS = st.sampled_from(["high", "highest"])


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(residual, right):
    return (torch.linalg.vector_norm(residual, dim=0) / torch.linalg.vector_norm(right, dim=0)).max()


@given(spectra(most=120), st.floats(-10, 0.3), st.booleans(), PRECISIONS, st.integers(1, 3), st.integers(0, 10**6))
def test_every_shift_is_answered_within_what_is_stated_or_refused(values, exponent, below, precision, columns, seed):
    operator = operator_with(values, seed)
    n, largest = len(values), float(values[0])
    shift = largest * 10.0**exponent * (-1 if below else 1)
    F = factorize(operator, shift, precision, 1 << 30, seed)
    shifted = operator.matrix - shift * eye(n)
    exact = torch.linalg.eigvalsh(shifted)
    gap = float(exact.abs().min())
    if F.positive + F.negative < n:
        assert gap <= 1e-6 * largest
        return
    distance = float(torch.linalg.matrix_norm(shifted - F._ldl.product(eye(n)), 2))
    assert distance <= F.residual <= (1e-3 if precision == "high" else 1e-10) * (largest + abs(shift))
    # Weyl: the eigenvalues that are further from the shift than the factor is off.
    assert int((exact > F.residual).sum()) <= F.positive <= int((exact > -F.residual).sum())
    count = F.count()
    assert count.lower <= int((exact > 0).sum()) <= count.upper
    assert (count.lower, count.upper) == (F.positive, F.positive) or gap <= 10 * F.residual
    b = normal(n, columns, seed=seed)
    reachable = gap > max(1e3 * F.residual, 1e-5 * largest)
    with contextlib.nullcontext() if reachable else contextlib.suppress(ResolutionError), warnings.catch_warnings():
        warnings.simplefilter("error" if gap > 1e-9 * n * largest else "ignore")
        x = F.solve(b, 1e-8)
        assert relative(b - shifted @ x, b) <= 1.1e-8 + 1e-15 * n * largest * x.norm() / b.norm()
    answered = n * F.residual < 1e-3 * gap
    with contextlib.nullcontext() if answered else contextlib.suppress(ResolutionError):
        found = F.logdet(1e-2)
        truth = float(exact.abs().log().sum())
        assert abs(found - truth) <= 1e-2 + 4 * n * 1e-16 * n * largest / gap
        assert F.negative == int((exact < 0).sum())


@given(st.integers(1, 300), st.floats(-4, 0), st.floats(-8, -0.5), st.integers(0, 2), st.integers(0, 10**6))
def test_a_factor_of_something_else_is_worth_what_its_distance_allows(n, exponent, off, kind, seed):
    """Spoiled by a multiple of the identity, of one direction, or by noise: bounds hold it, solutions repair it."""
    operator, shift = operator_with(torch.logspace(0, -3, n, dtype=torch.float64), seed), -(10.0**exponent)
    size, noise = abs(shift) * 10.0**off, normal(n, n, seed=seed)
    spoiled = operator.matrix + size * (eye(n), torch.ones(n, n).double() / n, (noise + noise.t()) / 4 / n**0.5)[kind]
    ldl = block_ldl(DenseOperator(spoiled), shift, torch.float64)
    F = Factorization(operator, ldl, "highest", 1 << 30, seed, False)
    shifted, b = operator.matrix - shift * eye(n), normal(n, 2, seed=seed)
    assert torch.linalg.matrix_norm(shifted - ldl.product(eye(n)), 2) <= F.residual <= 8 * size + 1e-10
    assert relative(b - shifted @ F.solve(b, 1e-9), b) <= 1.1e-9
    truth, answers = float(torch.linalg.slogdet(shifted)[1]), 0
    for tol in (1e-6, 1e-3, 1.0):
        with contextlib.suppress(ResolutionError):
            assert abs(F.logdet(tol) - truth) <= tol + 1e-11 * n
            answers += 1
    assert answers >= (1 if 10.0**off * n**0.5 <= 0.02 else 0)


@settings(max_examples=12)
@given(st.integers(1, 9), st.floats(-4, 0), PRECISIONS, st.integers(0, 10**6))
def test_small_ones_against_fifty_digits(n, exponent, precision, seed):
    """Entries and shift are taken as the exact numbers they are."""
    operator = operator_with(torch.logspace(0, -6, n, dtype=torch.float64), seed)
    shift, b = -(10.0**exponent), normal(n, 1, seed=seed)
    with mpmath.workdps(50):
        exact = mpmath.matrix(operator.matrix.tolist()) - mpmath.mpf(shift) * mpmath.eye(n)
        solution = mpmath.lu_solve(exact, mpmath.matrix(b.tolist()))
        logdet = mpmath.log(abs(mpmath.det(exact)))
        F = factorize(operator, shift, precision, 1 << 30, seed)
        x = F.solve(b, 1e-12)
        error = max(abs(mpmath.mpf(float(x[i, 0])) - solution[i]) for i in range(n))
        assert error <= 1e-11 / abs(shift) * float(b.norm())
        with contextlib.suppress(ResolutionError):
            assert abs(mpmath.mpf(F.logdet(1e-4)) - logdet) <= 1e-4
        assert abs(mpmath.mpf(F.logdet(1.0)) - logdet) <= 1.0


@settings(max_examples=10)
@given(networks(max_width=16, max_depth=2), st.integers(2, 40), st.floats(-6, 0), PRECISIONS, st.integers(0, 10**6))
def test_the_evidence_of_a_gaussian_process(net, n, exponent, precision, seed):
    K = inr.ntk(net, random_coords(n, net.in_features, seed), output=0)
    dense = K.at_precision("highest").to_dense()
    noise = float(dense.diagonal().max()) * 10.0**exponent or 1.0
    y = noise**0.5 * normal(n, seed=seed)
    F = K.factor(-noise, precision)
    truth = scipy.stats.multivariate_normal(cov=(dense + noise * eye(n)).numpy()).logpdf(y.numpy())
    with contextlib.suppress(ResolutionError):
        found = -0.5 * float(y @ F.solve(y, 1e-9)) - 0.5 * F.logdet(1e-3) - n / 2 * math.log(2 * math.pi)
        assert abs(found - truth) <= 1e-3 + 1e-7 * abs(truth)
    assert F.negative == 0 or precision == "high"


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_a_shift_that_is_an_eigenvalue_is_told(precision):
    """Within rounding there is a solution or none: an error or a warning says so, and there is no determinant."""
    values = torch.linspace(1, 2, 60, dtype=torch.float64)
    cases = [
        (DenseOperator(torch.diag(values)), float(values[17])),
        (DenseOperator(torch.zeros(5, 5, dtype=torch.float64)), 0.0),
        (DenseOperator(eye(40)), 1.0),
        (operator_with(torch.where(values < 1.5, 1.0, 0.0).double(), 0), 0.0),
    ]
    for operator, shift in cases:
        F = factorize(operator, shift, precision, 1 << 30)
        told = ""
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            try:
                F.solve(normal(operator.shape[0], 2))
            except (ResolutionError, RuntimeWarning) as error:
                told = str(error)
        assert "singular" in told or "stays above" in told
        with pytest.raises(ResolutionError):
            F.logdet(1.0)


def test_right_hand_sides_of_any_size_shape_and_dtype():
    operator = operator_with(torch.logspace(0, -4, 50, dtype=torch.float64), 0)
    F, shifted = factorize(operator, 1e-2, "high", 1 << 30), operator.matrix - 1e-2 * eye(50)
    b = normal(50, 4) * torch.tensor([1e-300, 1.0, 1e300, 0.0], dtype=torch.float64)
    x, truth = F.solve(b, 1e-10), torch.linalg.solve(shifted, normal(50, 4))
    assert ((x[:, :3] / b[0, :3] * normal(50, 4)[0, :3] - truth[:, :3]).norm(dim=0) <= 1e-6 * truth[:, :3].norm()).all()
    assert (x[:, 3] == 0).all()
    assert F.solve(b[:, 1]).shape == (50,)
    assert F.solve(b[:, 1].float()).dtype == torch.float64
    with pytest.raises(RangeError, match="beyond fp64"):
        factorize(operator, -1e-12, "highest", 1 << 30).solve(torch.full((50,), 1e308, dtype=torch.float64))


def test_vectors_that_do_not_fit_together_are_solved_for_in_turn_or_refused():
    operator, b = operator_with(torch.logspace(0, -12, 200, dtype=torch.float64), 0), normal(200, 7)
    F = factorize(operator, -1e-7, "high", 1 << 30)
    F._budget = 3 * b.nbytes + 8 * 200 * 16
    assert relative(b - operator.matrix @ F.solve(b) - 1e-7 * F.solve(b), b) <= 1.1e-6
    F._budget = 3 * b.nbytes
    with pytest.raises(MemoryBudgetError, match="a solution of order 200"):
        F.solve(b)


def test_a_factor_goes_through_pickle_copies_and_threads(tmp_path):
    K = inr.ntk(inr.INR(2, 1, width=12, seed=0), inr.grid((9, 9)))
    F, b = K.factor(-1.0), normal(81, 2)
    truth = F.solve(b)
    found = [G.solve(b) for G in (pickle.loads(pickle.dumps(F)), copy.copy(F), copy.deepcopy(F))]
    workers = [threading.Thread(target=lambda: found.append(F.solve(b))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 7
    assert all(relative(x - truth, truth) <= 1e-10 for x in found)
    assert repr(pickle.loads(pickle.dumps(F))) == repr(F)
    stored = K.factor(-1.0, out=tmp_path / "factor")
    assert torch.equal(stored.solve(b), truth)
    assert torch.equal(K.factor(-1.0, out=tmp_path / "factor").solve(b), truth)
    with pytest.raises(TypeError, match="nor copy it"):
        pickle.dumps(stored)


def test_it_says_what_it_is():
    F = inr.ntk(inr.INR(2, 1, width=12, seed=0), inr.grid((9, 9))).factor(1e3, "high")
    assert "residual=not measured yet" in repr(F)
    assert f"residual={F.residual:.2e}" in repr(F)
    for part in (
        "shape=(81, 81)",
        "shift=1000",
        "precision='high'",
        f"positive={F.positive}",
        f"negative={F.negative}",
    ):
        assert part in repr(F)
    assert isinstance(F, inr.Factorization)
    assert F.positive + F.negative == 81


def test_what_exceeds_the_budget_is_refused_with_what_fits(tmp_path):
    K = inr.ntk(inr.INR(2, 1, width=8), inr.grid((40, 40)), memory_budget=18 * 10**6)
    with pytest.raises(MemoryBudgetError, match=r"order 1600 in fp64.* fits.* fp32") as told:
        K.factor(-1.0)
    roomy = inr.ntk(inr.INR(2, 1, width=8), inr.grid((40, 40)), memory_budget=told.value.needed)
    F, b = roomy.factor(-1.0), normal(1600)
    assert relative((b - roomy.at_precision("highest") @ F.solve(b) - F.solve(b))[:, None], b[:, None]) <= 1.1e-6
    roomy.factor(-1.0, out=tmp_path / "factor")
    assert f"in a file, with {format_bytes((tmp_path / 'factor').stat().st_size)} of a disk" in str(told.value)


BAD = {
    "shift": (lambda K: K.factor(math.nan), ValueError, "shift must be finite"),
    "shift of text": (lambda K: K.factor("1"), TypeError, "shift must be a number"),
    "precision": (lambda K: K.factor(1.0, "hihg"), ValueError, "Did you mean 'high'"),
    "medium": (lambda K: K.factor(1.0, "medium"), ValueError, "precision must be one of"),
    "seed": (lambda K: K.factor(1.0, seed=-1), ValueError, "seed"),
    "length": (lambda K: K.factor(-1.0).solve(torch.ones(24)), ValueError, r"b must have shape \(25,\)"),
    "integers": (
        lambda K: K.factor(-1.0).solve(torch.ones(25, dtype=torch.int64)),
        TypeError,
        "b must have a floating",
    ),
    "complex": (lambda K: K.factor(-1.0).solve(torch.ones(25) * 1j), TypeError, "b must have a floating"),
    "NaN": (lambda K: K.factor(-1.0).solve(torch.full((25,), math.nan)), ValueError, "b must be finite"),
    "tol": (lambda K: K.factor(-1.0).solve(torch.ones(25), tol=0), ValueError, "tol must be above"),
    "tol of logdet": (lambda K: K.factor(-1.0).logdet(tol=-1), ValueError, "tol must be above"),
    "V": (lambda K: K.factor(-1.0)(torch.ones(24)), ValueError, "V must have shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(inr.ntk(inr.INR(2, 1, width=8), inr.grid((5, 5))))
    if name in ("shift", "precision"):
        with pytest.raises(ValueError, match="coords2"):
            inr.ntk(inr.INR(2, 1, width=8), inr.grid((5, 5)), inr.grid((4, 4))).factor(1.0)

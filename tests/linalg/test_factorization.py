"""Factorisations of ``K - shift I``: inertia, distance, solutions and log-determinants, or an error, at every shift."""

import contextlib
import copy
import math
import os
import pickle
import re
import tempfile
import threading
import warnings

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import operator_with, spectra
from random_networks import networks, random_coords

import inrfast as inr
from inrfast.errors import MemoryBudgetError, RangeError, ResolutionError
from inrfast.linalg import factorization, systems
from inrfast.linalg.block_ldl import block_ldl
from inrfast.linalg.factorization import Factorization, bytes_of_factor, factorize
from inrfast.linalg.operators import DenseOperator
from inrfast.linalg.written import written_bytes
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
    nearly = inr.ntk(inr.INR(2, 1, width=8), inr.grid((40, 40)), memory_budget=told.value.needed - 4096)
    with pytest.raises(MemoryBudgetError) as told:
        nearly.factor(-1.0)
    nearly.factor(-1.0, out=tmp_path / "factor")
    assert f"in a file, with {format_bytes((tmp_path / 'factor').stat().st_size)} of a disk" in str(told.value)


@settings(max_examples=12, deadline=None)
@given(st.integers(5, 40), st.floats(0.05, 1.0), st.booleans())
def test_what_a_refusal_says_fits_fits_and_what_it_says_does_not_is_refused(side, share, stored):
    """Sizes are those of the factor, the network's factors come beside them."""

    def kernel(points, budget):
        return inr.ntk(inr.INR(2, 1, width=64, seed=0), inr.grid((1, points)), memory_budget=budget)

    def fits(points, budget, **given):
        with contextlib.suppress(MemoryBudgetError):
            return kernel(points, budget).factor(-0.1, **given) is not None
        return False

    n = 16 * side
    budget = int(share * (16 * n * n + 2**21))
    with tempfile.TemporaryDirectory() as folder:
        given, other = ({"out": os.path.join(folder, name)} if stored else {} for name in ("one", "two"))
        if fits(n, budget, **given):
            return
        with pytest.raises(MemoryBudgetError) as refused:
            kernel(n, budget).factor(-0.1, **given)
        told, needed = str(refused.value), refused.value.needed
        assert fits(n, needed, **given)
        assert not fits(n, needed - 4096, **given)
        if found := re.search(r"order (\d+) fits", told):
            assert fits(int(found[1]), budget, **other)
        if not stored:
            assert fits(n, budget, precision="high") == ("it fits" in told)
            assert fits(n, budget, out=os.path.join(folder, "three")) == ("keeps it in a file" in told)


class Costly(DenseOperator):
    """A matrix whose products are dear, as those of a kernel are."""

    entry_flops, product_flops, products = 0.0, 1e12, 0

    def __matmul__(self, V):
        """Return the product, and count it."""
        self.products += 1
        return super().__matmul__(V)


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_entries_are_kept_where_there_is_room_and_given_up_for_vectors(precision, monkeypatch):
    n, b = 300, normal(300, 5)
    matrix = operator_with(torch.logspace(0, -4, n, dtype=torch.float64), 0).matrix
    kept = written_bytes(n, torch.device("cpu"))
    least = kept + bytes_of_factor(DenseOperator(matrix), precision)
    assert least > 4 * kept
    for budget, share, keeps in (
        (1 << 30, 0.25, True),
        (least, 0.25, True),
        (least - 8, 0.25, False),
        (1 << 30, 0, False),
    ):
        monkeypatch.setattr(factorization, "WRITTEN", share)
        operator = Costly(matrix)
        F = factorize(operator, -1e-2, precision, budget)
        own = factorize(DenseOperator(matrix), -1e-2, precision, budget)
        assert F.nbytes == own.nbytes + (kept if keeps else 0) <= budget
        G = pickle.loads(pickle.dumps(F))
        truth = torch.linalg.solve(matrix + 1e-2 * eye(n), b)
        assert relative(G.solve(b, 1e-10) - truth, truth) <= 1e-8
        assert abs(G.logdet(1e-3) - own.logdet(1e-3)) <= 2e-3
        assert G.residual <= 2 * own.residual + 1e-12
        assert relative(F.solve(b, 1e-10) - truth, truth) <= 1e-8
        assert (operator.products == 0) == keeps
    monkeypatch.undo()
    F = factorize(Costly(matrix), -1e-2, precision, 1 << 30)
    F._budget = 3 * b.nbytes + 8 * n * 10  # there is room for vectors, but not for the entries
    assert relative(F.solve(b, 1e-10) - truth, truth) <= 1e-8
    assert F.nbytes == own.nbytes


@settings(max_examples=8, deadline=None)
@given(st.integers(4, 12), st.floats(-9, 0), st.sampled_from(["gaussian", "sine"]), st.integers(0, 100))
def test_a_log_determinant_is_stated_as_well_as_its_noise_allows(side, exponent, activation, seed):
    """Down to 1e-6 of the largest eigenvalue it must be to 1e-2; and the tolerance that a refusal names passes."""
    K = inr.ntk(inr.INR(2, 1, width=24, activation=activation, seed=seed), inr.grid((side, side)))
    dense = K.at_precision("highest").to_dense()
    noise = float(torch.linalg.eigvalsh(dense)[-1]) * 10.0**exponent
    F, truth = K.factor(-noise), float(torch.linalg.slogdet(dense + noise * eye(side * side))[1])
    with contextlib.nullcontext() if exponent >= -6 else contextlib.suppress(ResolutionError):
        assert abs(F.logdet() - truth) <= 1e-2
    with pytest.raises(ResolutionError) as told:
        F.logdet(1e-14)
    if found := re.search(r"or tol=(\S+)$", str(told.value)):
        assert abs(F.logdet(float(found[1])) - truth) <= float(found[1])
    else:
        assert exponent < -6


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.floats(-13, -2), PRECISIONS, st.integers(0, 10**6))
def test_a_solution_that_rounding_of_the_entries_changes_is_warned_of(n, exponent, precision, seed):
    """Without a warning the residual is as small in long double, which sees the rounding of the one in fp64."""
    operator = operator_with(torch.linspace(1, 2, n, dtype=torch.float64), seed)
    shift, b = 1.0 - 10.0**exponent, normal(n, 1, seed=seed)
    noise = normal(n, n, seed=seed + 1)
    other = operator.matrix + 1.1e-16 * operator.matrix.diagonal().sum() * (noise + noise.t()) / 4 / n**0.5
    with warnings.catch_warnings(record=True) as told, contextlib.suppress(ResolutionError):
        warnings.simplefilter("always")
        x = factorize(operator, shift, precision, 1 << 30).solve(b)
        exact = operator.matrix.numpy().astype(np.longdouble) - shift * np.eye(n, dtype=np.longdouble)
        residual = torch.from_numpy((b.numpy() - exact @ x.numpy().astype(np.longdouble)).astype(np.float64))
        moved = torch.linalg.solve(other - shift * eye(n), b)
        if not told:
            assert relative(residual, b) <= 1.2e-6
            assert relative(moved - x, x) <= 1e-4  # b may have little of the direction that is nearly lost
    assert not told or exponent < -6


def test_a_direct_solution_measures_nothing_that_is_not_told(monkeypatch):
    monkeypatch.setattr(Factorization, "told", None)
    operator, b = operator_with(torch.logspace(0, -4, 50, dtype=torch.float64), 0), normal(50, 2)
    x = systems.solve(operator, b, 1e-2, 1e-8, 1 << 30, method="direct")
    assert relative(b - operator.matrix @ x - 1e-2 * x, b) <= 1e-8


def test_what_is_not_to_be_had_is_said():
    K, ones = inr.ntk(inr.INR(2, 1, width=8, seed=0), inr.grid((5, 5))), torch.ones(25)
    with pytest.raises(ResolutionError, match=r"rounding in fp64 alone .* take a larger tol"):
        K.factor(-1.0).solve(ones, tol=1e-17)
    assert K.factor(0.0).told().startswith("K is within")
    with pytest.raises(RangeError, match=r'K \+ 1e\+100 I .*precision="highest"'):
        K.factor(-1e100, "high")
    assert K.factor(1e100).residual <= 1e88
    with pytest.raises(RangeError, match="beyond fp64; give a smaller V"):
        K.factor(-1e-3)(normal(25) * 1e307)
    F, V = K.factor(-1e-3), normal(25, 2)
    assert relative(F(V * 1e300) / 1e300 - F(V), F(V)) <= 1e-14
    with pytest.raises(ValueError, match="counts is of a kernel between the same points"):
        inr.ntk(inr.INR(2, 1, width=8), inr.grid((5, 5)), inr.grid((4, 4))).counts()


BAD = {
    "meta": (lambda K: K.factor(-1.0).solve(torch.ones(25, device="meta")), ValueError, "b is on meta"),
    "sparse": (lambda K: K @ torch.ones(25).to_sparse(), TypeError, "V must be a dense tensor"),
    "float8": (lambda K: K.factor(-1.0)(torch.ones(25).to(torch.float8_e4m3fn)), TypeError, "16 bits or more"),
    "huge shift": (lambda K: K.factor(-1e300), ValueError, r"shift must be at most 1e\+140 in size"),
    "progress": (lambda K: K.factor(1.0, progress="x"), TypeError, "progress must be True or False"),
    "progress of solve": (lambda K: K.factor(-1.0).solve(torch.ones(25), progress=2), TypeError, "progress must be"),
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

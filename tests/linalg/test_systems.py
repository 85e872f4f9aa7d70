"""Ridge systems: dense and by iteration, the residual that was asked for or an error."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_spectra import operator_with, spectra

from inrfast.backends import warn_once
from inrfast.errors import MemoryBudgetError, RangeError, ResolutionError
from inrfast.linalg import systems
from inrfast.linalg.factorization import factorize
from inrfast.linalg.preconditioners import PRECONDITIONERS, System
from inrfast.linalg.preconditioners import pivoted_cholesky as pivots


@pytest.fixture
def iterated(monkeypatch):
    monkeypatch.setattr(systems, "SMALL", 0)


@pytest.mark.filterwarnings("ignore:conjugate gradients did not")
@given(spectra(), st.integers(1, 3), st.floats(-6, 0), st.integers(0, 10**6))
def test_the_residual_is_what_was_asked_for(values, columns, exponent, seed):
    operator = operator_with(values, seed)
    ridge = float(values[0]) * 10.0**exponent
    y = torch.randn(len(values), columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    damped = operator.matrix + ridge * torch.eye(len(values), dtype=torch.float64)
    truth = torch.linalg.solve(damped, y)
    for small, method in ((0, "auto"), (10**6, "auto"), (0, "direct"), (10**6, "cg")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(systems, "SMALL", small)
            x = systems.solve(operator, y, ridge, 1e-8, 1 << 30, progress=False, method=method)
        residual = torch.linalg.vector_norm(y - damped @ x, dim=0) / torch.linalg.vector_norm(y, dim=0)
        assert residual.max() <= 1.1e-8
        assert (x - truth).norm() <= 2e-8 * 10.0**-exponent * truth.norm()


def test_the_preconditioner_spares_products(iterated):
    """Condition number 1e8: without a preconditioner some ten thousand products."""
    values = torch.arange(1, 1001, dtype=torch.float64) ** -4.0
    operator = operator_with(values, 0)
    taken = []
    product = operator.__matmul__

    class Counted(type(operator)):
        def __matmul__(self, V):
            taken.append(V.shape[1])
            return product(V)

    operator.__class__ = Counted
    y = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    systems.solve(operator, y, 1e-8, 1e-8, 1 << 30)
    assert len(taken) <= 60


@pytest.mark.filterwarnings("ignore:conjugate gradients did not")
def test_singular_systems_and_small_budgets_are_refused(iterated):
    values = torch.where(torch.arange(600) < 300, 1.0, 0.0).double()
    operator = operator_with(values, 0)
    y = torch.ones(600, 1, dtype=torch.float64)
    with pytest.raises(ResolutionError, match="raise ridge"):
        systems.solve(operator, y, 0.0, 1e-8, 1 << 30)
    with pytest.raises(MemoryBudgetError, match="a preconditioner of order 600"):
        systems.solve(operator, y, 1.0, 1e-8, 1000)
    assert (systems.solve(operator, 0 * y, 1.0, 1e-8, 1 << 30) == 0).all()


@given(spectra(), st.sampled_from(sorted(PRECONDITIONERS)), st.integers(1, 3), st.integers(0, 10**6))
def test_every_preconditioner_is_linear_symmetric_and_positive_definite(values, name, columns, seed):
    operator = operator_with(values, seed)
    system = System(operator, 1e-3 * float(values[0]), 1 << 30, 0, seed, False)
    P = PRECONDITIONERS[name](system)(torch.eye(len(values), dtype=torch.float64))
    assert (P - P.t()).abs().max() <= 1e-8 * P.abs().max()
    assert torch.linalg.eigvalsh(P).min() > 0
    V = torch.randn(len(values), columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(PRECONDITIONERS[name](system)(V), P @ V, rtol=1e-7, atol=1e-7 * float(P.abs().max()))


def products_of(preconditioner, values, scale):
    """Return how many products a system takes whose rows are scaled."""
    operator = operator_with(values, 0)
    operator.matrix = scale.unsqueeze(1) * operator.matrix * scale
    taken, product = [], operator.__matmul__

    class Counted(type(operator)):
        def __matmul__(self, V):
            taken.append(V.shape[1])
            return product(V)

    operator.__class__ = Counted
    y = torch.randn(len(values), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    systems.solve(operator, y, 0.0, 1e-6, 1 << 30, preconditioner=preconditioner)
    return len(taken)


def test_a_preconditioner_that_knows_the_matrix_takes_fewer_products():
    values, scale = torch.linspace(1, 2, 300).double(), torch.logspace(0, 1.5, 300, dtype=torch.float64)
    exact = scale.unsqueeze(1) * operator_with(values, 0).matrix * scale
    factor = torch.linalg.cholesky(exact)
    taken = {name: products_of(name, values, scale) for name in ("none", "diagonal")}
    taken["own"] = products_of(lambda residual: torch.cholesky_solve(residual, factor), values, scale)
    taken["fp32"] = products_of(lambda residual: torch.cholesky_solve(residual.float(), factor.float()), values, scale)
    assert taken["none"] > 2 * taken["diagonal"]
    assert taken["own"] <= 3
    assert taken["fp32"] <= 6


NO_PRECONDITIONERS = {
    "name": ("choleski", ValueError, "preconditioner must be one of"),
    "number": (3, TypeError, "a name, a function"),
    "nothing": (lambda r: None, TypeError, "must return a torch.Tensor"),
    "shape": (lambda r: r[:, 0], ValueError, "must return a floating tensor of shape"),
    "integers": (lambda r: r.long(), ValueError, "must return a floating tensor"),
    "NaN": (lambda r: r * math.nan, ValueError, "NaN or Inf"),
    "nonlinear": (lambda r: r.abs(), ValueError, "not linear"),
    "columns": (lambda r: r / r.norm(), ValueError, "not linear, column by column"),
    "nonsymmetric": (lambda r: r.cumsum(0), ValueError, "not symmetric"),
    "negative": (lambda r: -r, ValueError, "not positive definite"),
    "indefinite": (lambda r: torch.cat([-r[:20], r[20:]]), ValueError, "not positive definite"),
}


@pytest.mark.parametrize("name", NO_PRECONDITIONERS)
def test_what_is_no_preconditioner_is_refused(name):
    given, error, message = NO_PRECONDITIONERS[name]
    operator = operator_with(torch.logspace(0, -3, 30, dtype=torch.float64), 0)
    with pytest.raises(error, match=message):
        systems.solve(operator, torch.ones(30, 1, dtype=torch.float64), 1e-2, 1e-6, 1 << 30, preconditioner=given)


def test_a_preconditioner_may_write_into_what_it_gets_and_one_that_does_not_help_is_told():
    operator = operator_with(torch.logspace(0, -6, 200, dtype=torch.float64), 0)
    y = torch.ones(200, 1, dtype=torch.float64)
    x = systems.solve(operator, y, 1.0, 1e-9, 1 << 30, preconditioner=lambda r: r.mul_(2.0))
    assert (y - operator @ x - x).norm() <= 1e-8 * y.norm()
    with pytest.raises(ResolutionError, match="another preconditioner"):
        systems.solve(operator, y, 0.0, 1e-13, 1 << 30, preconditioner="none")
    with pytest.raises(MemoryBudgetError, match="an iteration of order 200"):
        systems.solve(operator, y, 1.0, 1e-9, 1000, preconditioner="diagonal")


@given(
    spectra(), st.integers(-300, 300), st.integers(-300, 300), st.sampled_from([None, "own", *sorted(PRECONDITIONERS)])
)
def test_solutions_scale_with_the_right_hand_side_and_not_with_the_preconditioner(values, exponent, other, name):
    """A column of zeros gives zeros; so it does beside columns of any size."""
    n, operator = len(values), operator_with(values, 0)
    ridge = float(values[0])
    y = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.tensor([10.0**exponent, 10.0**other, 0.0], dtype=torch.float64)
    truth = torch.linalg.solve(operator.matrix + ridge * torch.eye(n, dtype=torch.float64), y)
    given_by = {"own": lambda r: r * 10.0**exponent}.get(name, name)
    x = systems.solve(operator, y * scale, ridge, 1e-9, 1 << 30, progress=False, preconditioner=given_by)
    assert (x[:, 2] == 0).all()
    for column in range(2):
        # Both may lie below what fp64 holds with all digits, or the solution beyond it.
        found, wanted = x[:, column] / scale[column], truth[:, column]
        assert (found - wanted).norm() <= 1e-8 * wanted.norm() + 1e-320 / scale[column]


def test_a_solution_beyond_fp64_is_told():
    operator = operator_with(torch.full((20,), 1e-20, dtype=torch.float64), 0)
    with pytest.raises(RangeError, match="beyond fp64"):
        systems.solve(operator, torch.full((20, 1), 1e300, dtype=torch.float64), 1e-20, 1e-6, 1 << 30)


def attempt(operator, y, ridge, method, budget=1 << 30, **options):
    """Return the largest relative residual of a solution, infinite where none was found."""
    try:
        x = systems.solve(operator, y, ridge, 1e-7, budget, progress=False, method=method, **options)
    except ResolutionError:
        return math.inf
    residual = torch.linalg.vector_norm(y - operator.matrix @ x - ridge * x, dim=0)
    return float((residual / torch.linalg.vector_norm(y, dim=0)).max())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(spectra(), st.floats(-13, 0), st.integers(1, 3), st.integers(0, 10**6))
def test_auto_solves_what_either_method_solves(values, exponent, columns, seed):
    """However near to singular; no method returns a residual above the one that was asked for."""
    operator, ridge = operator_with(values, seed), float(values[0]) * 10.0**exponent
    y = torch.randn(len(values), columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systems, "SMALL", 0)
        found = {method: attempt(operator, y, ridge, method) for method in ("auto", "direct", "cg")}
    assert all(residual <= 1.1e-7 or math.isinf(residual) for residual in found.values())
    assert math.isinf(found["auto"]) <= math.isinf(found["direct"])
    if exponent > -8:
        assert not math.isinf(found["direct"])


def test_conjugate_gradients_are_left_when_they_have_cost_as_much_as_a_factorisation(iterated):
    """Flat over ten orders: no low rank helps; a warning tells, and what the budget forbids is not tried."""
    operator = operator_with(torch.logspace(0, -10, 400, dtype=torch.float64), 0)
    y, taken, product = torch.ones(400, 1, dtype=torch.float64), [], operator.__matmul__

    class Counted(type(operator)):
        def __matmul__(self, V):
            taken.append(V.shape[1])
            return product(V)

    operator.__class__ = Counted
    warn_once.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pivots, "PIVOTS", 16)
        with pytest.warns(RuntimeWarning, match=r"factorisation \(fp64\), which solves the system"):
            assert attempt(operator, y, 1e-10, "auto") <= 1e-7
        assert len(taken) <= 400 / 12 + 30  # half of 400^3 / 3 FLOP, 2 400^2 a product
        assert math.isinf(attempt(operator, y, 1e-10, "cg"))
        assert math.isinf(attempt(operator, y, 1e-10, "auto", budget=1_500_000))
    with pytest.raises(MemoryBudgetError, match="the factor of order 400"):
        systems.solve(operator, y, 1e-10, 1e-7, 1_500_000, method="direct")


@given(spectra(), st.floats(-13, 0), st.integers(0, 10**6))
def test_a_factor_is_a_preconditioner(values, exponent, seed):
    """By name it is positive definite whatever rounding does; one of another ridge and one in fp32 serve as well."""
    operator, ridge = operator_with(values, seed), float(values[0]) * 10.0**exponent
    y = torch.randn(len(values), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if exponent > -8:
        assert attempt(operator, y, ridge, "auto", preconditioner="factorization") <= 1.1e-7
    F = factorize(operator, -2 * ridge, "highest", 1 << 30)
    if F.negative == 0 and exponent > -8:
        assert attempt(operator, y, ridge, "cg", preconditioner=F) <= 1.1e-7
    F = factorize(operator, float(values[0]), "high", 1 << 30)
    if F.negative:
        with pytest.raises(ValueError, match="negative eigenvalues"):
            systems.solve(operator, y, ridge, 1e-7, 1 << 30, preconditioner=F)


def test_methods_that_do_not_go_together_are_refused():
    operator, y = operator_with(torch.ones(20), 0), torch.ones(20, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="Did you mean 'direct'"):
        systems.solve(operator, y, 1.0, 1e-6, 1 << 30, method="dircet")
    with pytest.raises(ValueError, match="with method='direct' it must be None"):
        systems.solve(operator, y, 1.0, 1e-6, 1 << 30, method="direct", preconditioner="none")
    other = factorize(operator_with(torch.ones(19), 0), -1.0, "high", 1 << 30)
    with pytest.raises(ValueError, match="must have shape"):
        systems.solve(operator, y, 1.0, 1e-6, 1 << 30, preconditioner=other)

"""Ridge systems: dense and by iteration, the residual that was asked for or an error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_spectra import operator_with, spectra

from inrfast.errors import MemoryBudgetError, ResolutionError
from inrfast.linalg import systems


@pytest.fixture
def iterated(monkeypatch):
    monkeypatch.setattr(systems, "SMALL", 0)


@given(spectra(), st.integers(1, 3), st.floats(-6, 0), st.integers(0, 10**6))
def test_the_residual_is_what_was_asked_for(values, columns, exponent, seed):
    operator = operator_with(values, seed)
    ridge = float(values[0]) * 10.0**exponent
    y = torch.randn(len(values), columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    damped = operator.matrix + ridge * torch.eye(len(values), dtype=torch.float64)
    truth = torch.linalg.solve(damped, y)
    for small in (0, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(systems, "SMALL", small)
            x = systems.solve(operator, y, ridge, 1e-8, 1 << 30, progress=False)
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


def test_singular_systems_and_small_budgets_are_refused(iterated):
    values = torch.where(torch.arange(600) < 300, 1.0, 0.0).double()
    operator = operator_with(values, 0)
    y = torch.ones(600, 1, dtype=torch.float64)
    with pytest.raises(ResolutionError, match="raise ridge"):
        systems.solve(operator, y, 0.0, 1e-8, 1 << 30)
    with pytest.raises(MemoryBudgetError, match="a preconditioner of order 600"):
        systems.solve(operator, y, 1.0, 1e-8, 1000)
    assert (systems.solve(operator, 0 * y, 1.0, 1e-8, 1 << 30) == 0).all()
